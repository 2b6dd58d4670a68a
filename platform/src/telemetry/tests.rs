use std::io::{self, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use opentelemetry::metrics::MeterProvider;

use super::{build, start};
use crate::config::{LogFormat, Telemetry};

/// A writer whose lines can be read.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn config(log: &str, log_format: LogFormat) -> Telemetry {
    Telemetry { log: log.into(), log_format, otlp_endpoint: None }
}

/// What is written when `work` runs under `config`.
fn logged(config: &Telemetry, work: impl FnOnce()) -> String {
    let lines = Lines::default();
    let writer = lines.clone();
    let (guard, dispatch) = build(config, "tester", "one", move || writer.clone()).unwrap();
    tracing::dispatcher::with_default(&dispatch, work);
    guard.shutdown();
    lines.text()
}

#[test]
fn a_wrong_directive_is_named() {
    for (log, wrong) in [
        ("inof", "inof"),
        ("info,tally_sink=loud", "tally_sink=loud"),
        ("info,,warn", ""),
        ("", ""),
        ("info,tally_sink", "tally_sink"),
    ] {
        let built = build(&config(log, LogFormat::Text), "tester", "one", io::sink);
        let error = built.err().unwrap_or_else(|| panic!("{log:?} was taken"));
        assert!(error.to_string().contains(&format!("`{wrong}` is neither")), "{log:?}: {error:?}");
        assert!(error.to_string().starts_with("telemetry.log: "), "{error}");
    }
}

#[test]
fn json_lines_are_json() {
    let text = logged(&config("info", LogFormat::Json), || {
        let span = tracing::info_span!("flush", partition = 3);
        let _entered = span.enter();
        tracing::info!(batches = 2, topic = "a \"quoted\"\nname", "flushed");
        tracing::warn!("second");
    });
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[0]["level"], "INFO");
    assert_eq!(lines[0]["message"], "flushed");
    assert_eq!(lines[0]["batches"], 2);
    assert_eq!(lines[0]["topic"], "a \"quoted\"\nname");
    assert_eq!(lines[0]["span"]["partition"], 3);
    assert_eq!(lines[0]["target"], "tally_platform::telemetry::tests");
    assert_eq!(lines[1]["level"], "WARN");
}

#[test]
fn text_lines_are_not_json() {
    let text = logged(&config("info", LogFormat::Text), || tracing::info!(batches = 2, "flushed"));
    assert!(
        text.contains(" INFO ") && text.contains("flushed") && text.contains("batches=2"),
        "{text}"
    );
    assert!(!text.starts_with('{'), "{text}");
}

#[test]
fn librdkafka_is_quiet_unless_it_is_asked_for() {
    let work = || {
        tracing::debug!(target: "librdkafka", "at debug");
        tracing::info!(target: "librdkafka", "at info");
        tracing::warn!(target: "librdkafka", "at warn");
        tracing::error!(target: "librdkafka", "at error");
    };
    for (log, expected) in [
        ("info", vec!["at warn", "at error"]),
        ("debug", vec!["at warn", "at error"]),
        ("error", vec!["at error"]),
        ("info,librdkafka=debug", vec!["at debug", "at info", "at warn", "at error"]),
        ("info,librdkafka=off", vec![]),
    ] {
        let text = logged(&config(log, LogFormat::Json), work);
        let seen: Vec<&str> = ["at debug", "at info", "at warn", "at error"]
            .into_iter()
            .filter(|message| text.contains(message))
            .collect();
        assert_eq!(seen, expected, "{log}: {text}");
    }
}

#[test]
fn failed_exports_are_not_logged_one_by_one() {
    let text = logged(&config("info", LogFormat::Json), || {
        const SDK: &str = "opentelemetry_sdk";
        const OTLP: &str = "opentelemetry-otlp";
        tracing::error!(name: "BatchLogProcessor.ExportError", target: SDK, "each export");
        tracing::warn!(name: "Export.Failed.DeadlineExceeded", target: OTLP, "each retry");
        tracing::error!(name: "InstrumentCreationFailed", target: SDK, "a fault of ours");
    });
    assert!(!text.contains("each"), "{text}");
    assert!(text.contains("a fault of ours"), "{text}");
}

#[test]
fn instruments_keep_their_names() {
    let (guard, _) = build(&config("info", LogFormat::Json), "tester", "one", io::sink).unwrap();
    let meter = guard.meters.meter("tally");
    meter.u64_counter("tally_test_things_total").with_unit("s").build().add(7, &[]);
    meter.f64_histogram("tally_test_wait_seconds").with_unit("s").build().record(0.0015, &[]);
    meter.i64_gauge("tally_test_lag").build().record(-3, &[]);
    let text = prometheus::TextEncoder::new().encode_to_string(&guard.metrics().gather()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for line in [
        "tally_test_things_total 7",
        "tally_test_wait_seconds_bucket{le=\"0.001\"} 0",
        "tally_test_wait_seconds_bucket{le=\"0.002\"} 1",
        "tally_test_wait_seconds_count 1",
        "tally_test_lag -3",
    ] {
        assert!(lines.contains(&line), "{line} is not in\n{text}");
    }
    let info = lines.iter().find(|line| line.starts_with("target_info{")).expect(&text);
    assert!(
        info.contains("service_name=\"tally-tester\"")
            && info.contains("service_instance_id=\"one\"")
    );
}

#[cfg(target_os = "linux")]
#[test]
fn the_process_itself_is_measured() {
    let (guard, _) = build(&config("info", LogFormat::Json), "tester", "one", io::sink).unwrap();
    let text = prometheus::TextEncoder::new().encode_to_string(&guard.metrics().gather()).unwrap();
    for (name, least) in [
        ("process_resident_memory_bytes", 1e6),
        ("process_cpu_seconds_total", 0.0),
        ("process_start_time_seconds", 1e9),
        ("process_open_fds", 3.0),
    ] {
        let value =
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).expect(name);
        assert!(value.parse::<f64>().unwrap() >= least, "{name}: {value}");
    }
}

#[test]
fn an_endpoint_without_a_scheme_is_refused() {
    let config = Telemetry { otlp_endpoint: Some("localhost:4318".into()), ..Telemetry::default() };
    let error = build(&config, "tester", "one", io::sink).err().expect("it has no scheme");
    assert!(error.to_string().contains("`localhost:4318` does not begin with"), "{error:?}");
    let config = Telemetry { otlp_endpoint: Some("http://a b".into()), ..Telemetry::default() };
    let error = build(&config, "tester", "one", io::sink).err().expect("it has a space");
    assert!(
        error.to_string().ends_with("no exporter for traces to http://a b/v1/traces"),
        "{error:?}"
    );
}

#[derive(Clone, Debug)]
struct Export {
    path: String,
    content_type: String,
    body: Bytes,
}

/// An OTLP collector that keeps what it is sent.
async fn collector() -> (String, Arc<Mutex<Vec<Export>>>, tokio::task::JoinHandle<io::Result<()>>) {
    async fn keep(
        State(kept): State<Arc<Mutex<Vec<Export>>>>,
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
    ) {
        let content_type = headers["content-type"].to_str().unwrap().to_owned();
        kept.lock().unwrap().push(Export { path: uri.path().to_owned(), content_type, body });
    }
    let kept = Arc::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().fallback(keep).with_state(Arc::clone(&kept));
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    (url, kept, server)
}

fn contains(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

fn work(guard: &super::Guard, dispatch: &tracing::Dispatch) {
    tracing::dispatcher::with_default(dispatch, || {
        let span = tracing::info_span!("a_span_of_the_test");
        let _entered = span.enter();
        tracing::info!("an event of the test");
        tracing::info!(target: "hyper_util::client", "an event of the exporter's client");
        drop(tracing::info_span!(target: "reqwest::connect", "a_span_of_the_exporters_client"));
    });
    guard.meters.meter("tally").u64_counter("tally_test_things_total").build().add(1, &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_metrics_and_logs_reach_a_collector() {
    let (url, kept, server) = collector().await;
    let config =
        Telemetry { otlp_endpoint: Some(format!("{url}/")), ..config("info", LogFormat::Json) };
    let lines = Lines::default();
    let writer = lines.clone();
    let (guard, dispatch) = build(&config, "tester", "instance-7", move || writer.clone()).unwrap();
    work(&guard, &dispatch);
    guard.shutdown();
    tracing::dispatcher::with_default(&dispatch, || {
        let _entered = tracing::info_span!("a_late_span").entered();
        tracing::info!("after shutdown");
    });
    server.abort();
    let text = lines.text();
    assert!(text.contains("after shutdown") && !text.contains("opentelemetry"), "{text}");

    let exports = kept.lock().unwrap().clone();
    for (path, content) in [
        ("/v1/traces", "a_span_of_the_test"),
        ("/v1/metrics", "tally_test_things_total"),
        ("/v1/logs", "an event of the test"),
    ] {
        let export = exports.iter().find(|export| export.path == path);
        let export = export.unwrap_or_else(|| panic!("nothing came to {path}: {exports:?}"));
        assert_eq!(export.content_type, "application/x-protobuf");
        for text in
            [content, "service.name", "tally-tester", "instance-7", env!("CARGO_PKG_VERSION")]
        {
            assert!(contains(&export.body, text), "{text} is not in the body for {path}");
        }
    }
    assert_eq!(exports.len(), 3, "{exports:?}");
    for text in ["exporter", "after shutdown"] {
        assert!(!exports.iter().any(|export| contains(&export.body, text)), "{text} was exported");
    }
}

/// The bounds: a refused connection fails at once, a silent collector takes the export's timeout.
#[test]
fn without_a_collector_work_goes_on_and_shutdown_ends() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing = {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        closed.local_addr().unwrap()
    };
    for addr in [silent.local_addr().unwrap(), refusing] {
        let lines = Lines::default();
        let writer = lines.clone();
        let config = Telemetry {
            otlp_endpoint: Some(format!("http://{addr}")),
            ..config("info", LogFormat::Json)
        };
        let (guard, dispatch) = build(&config, "tester", "one", move || writer.clone()).unwrap();
        work(&guard, &dispatch);
        let text =
            prometheus::TextEncoder::new().encode_to_string(&guard.metrics().gather()).unwrap();
        assert!(text.contains("tally_test_things_total 1"), "{text}");
        let begin = Instant::now();
        tracing::dispatcher::with_default(&dispatch, || drop(guard));
        assert!(begin.elapsed() < Duration::from_secs(7), "shutdown took {:?}", begin.elapsed());
        let text = lines.text();
        assert!(text.contains("an event of the test"), "{text}");
        assert!(text.contains("the last telemetry was not sent"), "{addr}: {text}");
    }
}

#[test]
fn a_process_starts_telemetry_once() {
    let config = config("off", LogFormat::Json);
    let guard = start(&config, "tester", "one").unwrap();
    opentelemetry::global::meter("tally")
        .u64_counter("tally_test_global_total")
        .build()
        .add(5, &[]);
    let text = prometheus::TextEncoder::new().encode_to_string(&guard.metrics().gather()).unwrap();
    assert!(text.contains("tally_test_global_total 5"), "{text}");
    let again = start(&config, "tester", "one").err().expect("it is started already");
    assert!(again.to_string().contains("started already"), "{again}");
}
