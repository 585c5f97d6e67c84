//! What is counted, in the text format of Prometheus.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use palisade_engine::Snapshot;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: String,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

fn histogram() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0])
}

/// Counters of the HTTP side.
pub(crate) struct HttpMetrics {
    registry: Registry,
    requests: Family<Request, Counter<u64, AtomicU64>>,
    seconds: Family<Route, Histogram, fn() -> Histogram>,
    pub(crate) connections: Gauge<i64, AtomicI64>,
}

impl HttpMetrics {
    pub(crate) fn new() -> HttpMetrics {
        let mut registry = Registry::with_prefix("palisade");
        let requests = Family::default();
        let seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        let connections = Gauge::default();
        registry.register("http_requests", "Requests answered, by route and status", requests.clone());
        registry.register("http_request_seconds", "Time to the head of the answer, by route", seconds.clone());
        registry.register("http_connections", "Open connections", connections.clone());
        HttpMetrics { registry, requests, seconds, connections }
    }

    /// Counts a request. `route` is the pattern that matched, never the path itself, which would name objects.
    pub(crate) fn count(&self, method: &str, route: &str, status: u16, took: Duration) {
        let request = Request { method: method.to_owned(), route: route.to_owned(), status };
        self.requests.get_or_create(&request).inc();
        self.seconds.get_or_create(&Route { route: route.to_owned() }).observe(took.as_secs_f64());
    }

    /// Everything as text. `queued` is the number of queued work items over all environments.
    pub(crate) fn text(&self, engine: Snapshot, queued: u64) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        // The registry's own text ends with the end mark, and the engine's part must come before it.
        text.truncate(text.trim_end().trim_end_matches("# EOF").len());
        let mut own = Registry::with_prefix("palisade");
        let gauge = |count: usize| ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
        own.register("events", "Events made durable", ConstCounter::new(engine.events));
        own.register("work_polls", "Polls of work queues", ConstCounter::new(engine.polls));
        own.register("work_claims", "Work items handed out", ConstCounter::new(engine.claims));
        own.register("work_requeued", "Work items taken back from silent workers", ConstCounter::new(engine.requeued));
        own.register("sessions_live", "Sessions in memory", gauge(engine.live_sessions));
        own.register("streams_open", "Open event streams", gauge(engine.streams));
        own.register(
            "work_queued",
            "Work items that wait for a worker",
            ConstGauge::new(i64::try_from(queued).unwrap_or(i64::MAX)),
        );
        encode(&mut text, &own)?;
        Ok(text)
    }
}
