use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, UpDownCounter};
use tally_platform::http::BodyRoom;
use tally_platform::problem::Code as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::problem::Code;

/// The gateway's instruments.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    inner: Arc<Instruments>,
}

#[derive(Debug)]
struct Instruments {
    requests: Counter<u64>,
    increments: Counter<u64>,
    in_flight: UpDownCounter<i64>,
    delivery: Histogram<f64>,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let meter = opentelemetry::global::meter("tally");
        let inner = Instruments {
            requests: meter
                .u64_counter("tally_producer_requests_total")
                .with_description(
                    "Requests by outcome: accepted, abandoned by the client, \
                     or the problem's name.",
                )
                .build(),
            increments: meter
                .u64_counter("tally_producer_increments_total")
                .with_description("Increments that the log confirmed.")
                .build(),
            in_flight: meter
                .i64_up_down_counter("tally_producer_requests_in_flight")
                .with_description("Requests whose messages are on their way to Kafka.")
                .build(),
            delivery: meter
                .f64_histogram("tally_producer_delivery_seconds")
                .with_description(
                    "From handing a message to the client of the log until its report, by outcome.",
                )
                .build(),
        };
        Metrics { inner: Arc::new(inner) }
    }

    /// Starts to account for one request.
    pub(crate) fn request(&self) -> Request {
        Request { metrics: self.clone(), outcome: "abandoned" }
    }

    pub(crate) fn in_flight(
        &self,
        permit: OwnedSemaphorePermit,
        token: TaskTrackerToken,
        room: BodyRoom,
    ) -> InFlight {
        self.inner.in_flight.add(1, &[]);
        InFlight { metrics: self.clone(), _permit: permit, _token: token, _room: room }
    }

    pub(crate) fn delivered(&self, increments: usize, took: Duration) {
        self.inner.increments.add(increments as u64, &[]);
        self.delivery(took, "stored");
    }

    pub(crate) fn delivery(&self, took: Duration, outcome: &'static str) {
        self.inner.delivery.record(took.as_secs_f64(), &[KeyValue::new("outcome", outcome)]);
    }
}

/// One request's place in the metrics. Dropped without an outcome, it was abandoned: the client
/// went away before its answer.
pub(crate) struct Request {
    metrics: Metrics,
    outcome: &'static str,
}

impl Request {
    pub(crate) fn finish(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.outcome = Code::Internal.name();
        }
        self.metrics.inner.requests.add(1, &[KeyValue::new("outcome", self.outcome)]);
    }
}

/// A request's place among those in flight, and the room that it takes; it travels with the message
/// until the log's report, so that a client that hangs up makes no room for more than the log
/// takes.
#[derive(Debug)]
pub(crate) struct InFlight {
    metrics: Metrics,
    _permit: OwnedSemaphorePermit,
    _token: TaskTrackerToken,
    _room: BodyRoom,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.inner.in_flight.add(-1, &[]);
    }
}
