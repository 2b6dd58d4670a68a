//! The end of a service that others send requests to.

use reqwest::StatusCode;

use crate::installation::Installation;
use crate::service::Service;

/// Long enough for some requests, however busy the machine.
const GRACE_MS: &str = "10000";

/// A request over a connection of its own.
async fn call(request: reqwest::Request) -> StatusCode {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client is made");
    client.execute(request).await.expect("requests are still taken").status()
}

/// A balancer that looks at readiness sends requests until it has looked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_sigterm_requests_are_taken_until_a_balancer_has_noticed() {
    let tally = Installation::new("draining").await;
    for (kind, variable) in [
        (Service::Producer, "TALLY_PRODUCER__SHUTDOWN_GRACE_MS"),
        (Service::Reader, "TALLY_READER__SHUTDOWN_GRACE_MS"),
    ] {
        let mut service = tally.start_with(kind, "a", &[(variable, GRACE_MS)]);
        service.ready().await;
        service.ask_to_end();
        service.logs("draining").await;
        let why = service.readiness().await.expect_err("it is about to end");
        assert!(why.contains("asked to end"), "{why}");
        let http = service.http();
        let request = match kind {
            Service::Producer => http
                .post(format!("{}/v1/increments", service.url()))
                .body(r#"{"namespace": "drain", "key": "last"}"#),
            _ => http.get(format!("{}/v1/counters/drain/last", service.url())),
        };
        let status = call(request.build().expect("a request")).await;
        assert_eq!(status, StatusCode::OK, "{kind:?}");
        assert_eq!(service.ended().await.code(), Some(0), "{kind:?}");
    }
}
