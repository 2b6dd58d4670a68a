//! What is logged, and how a line looks.

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{Layer, Registry};

use crate::config::LogFormat;

pub(super) type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Libraries that say at `info` what is of interest only when looking for a fault in them.
const QUIET: &str = "librdkafka=warn,rdkafka=warn,opentelemetry=warn";

/// The filter that `telemetry.log` describes.
///
/// A word alone must be a level: `EnvFilter` would take a mistyped one for a target, and log
/// nothing.
pub(super) fn filter(directives: &str) -> anyhow::Result<EnvFilter> {
    let parse = |text: &str| EnvFilter::builder().parse(text);
    let given: Vec<&str> = directives.split(',').map(str::trim).collect();
    let is_wrong = |directive: &str| {
        let is_word = !directive.contains(['=', '[', ']', '{', '}']);
        directive.is_empty()
            || (is_word && directive.parse::<LevelFilter>().is_err())
            || parse(directive).is_err()
    };
    if let Some(wrong) = given.iter().find(|directive| is_wrong(directive)) {
        anyhow::bail!("telemetry.log: `{wrong}` is neither a level nor a `target=level` directive");
    }
    let given = given.join(",");
    let filter = parse(&given)?;
    match filter.max_level_hint() {
        Some(most) if most < LevelFilter::WARN => Ok(filter),
        _ => Ok(parse(&format!("{QUIET},{given}"))?),
    }
}

/// Writes events as lines; an error of the writer itself is dropped, since there is nowhere left to
/// say it.
pub(super) fn layer<W>(format: LogFormat, writer: W) -> BoxedLayer
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let is_terminal = std::io::stderr().is_terminal();
    let as_json = match format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    if as_json {
        lines
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .with_filter(filter_fn(is_worth_a_line))
            .boxed()
    } else {
        let has_colors =
            is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        lines.compact().with_ansi(has_colors).with_filter(filter_fn(is_worth_a_line)).boxed()
    }
}

/// The SDK reports each export that fails, whatever it was; [`super::watched`] says the same once
/// an outage.
fn is_worth_a_line(metadata: &Metadata<'_>) -> bool {
    let is_sdk_alarm =
        metadata.target().starts_with("opentelemetry") && *metadata.level() <= Level::WARN;
    !(is_sdk_alarm
        && (metadata.name().contains("Export") || metadata.name().ends_with("AfterShutdown")))
}
