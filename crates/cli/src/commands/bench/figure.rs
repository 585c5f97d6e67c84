//! What was measured, and what people and programs read of it.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::output::Output;

/// One figure, side by side with those of peers where there are any.
#[derive(Debug, Clone)]
pub(super) struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    larger_is_better: bool,
    peers: Vec<(&'static str, f64)>,
    details: Map<String, Value>,
}

impl Figure {
    pub(super) fn new(name: &'static str, value: f64, unit: &'static str) -> Figure {
        Figure { name, value, unit, larger_is_better: false, peers: Vec::new(), details: Map::new() }
    }

    /// One of which more is better, such as a rate. Of others less is.
    #[must_use]
    pub(super) fn larger_is_better(self) -> Figure {
        Figure { larger_is_better: true, ..self }
    }

    /// Beside it: the same thing done by something else.
    #[must_use]
    pub(super) fn beside(mut self, peer: &'static str, value: f64) -> Figure {
        self.peers.push((peer, value));
        self
    }

    /// Something that the figure depends on or consists of.
    #[must_use]
    pub(super) fn with(mut self, detail: &str, value: impl Into<Value>) -> Figure {
        self.details.insert(detail.to_owned(), value.into());
        self
    }

    /// Something else that was measured with it.
    #[must_use]
    pub(super) fn with_number(self, detail: &str, value: f64) -> Figure {
        self.with(detail, rounded(value))
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// How many times better this one is than a peer's.
    fn ratio(&self, value: f64) -> Option<f64> {
        let (better, worse) = if self.larger_is_better { (value, self.value) } else { (self.value, value) };
        (better > 0.0).then(|| worse / better)
    }

    /// Hands it to programs, and what it says to the table.
    pub(super) fn show(&self, out: Output) -> Vec<String> {
        let mut object = json!({"figure": self.name, "value": rounded(self.value), "unit": self.unit});
        // The first one stands for all where only one is looked for.
        if let Some(&(peer, value)) = self.peers.first() {
            object["peer"] = json!(peer);
            object["peer_value"] = json!(rounded(value));
            object["ratio"] = json!(self.ratio(value).map(rounded));
        }
        if self.peers.len() > 1 {
            let peers = self.peers.iter().map(|&(peer, value)| {
                let ratio = self.ratio(value).map(rounded);
                (peer.to_owned(), json!({"value": rounded(value), "ratio": ratio}))
            });
            object["peers"] = Value::Object(peers.collect());
        }
        for (detail, value) in &self.details {
            object[detail] = value.clone();
        }
        out.object(&object);
        let peers: Vec<_> = self.peers.iter().map(|(peer, value)| format!("{peer} {}", rounded(*value))).collect();
        let ratios: Vec<_> =
            self.peers.iter().filter_map(|(_, value)| Some(format!("{:.1}×", self.ratio(*value)?))).collect();
        let details: Vec<_> = self.details.iter().map(|(detail, value)| format!("{detail}={value}")).collect();
        vec![
            self.name.to_owned(),
            rounded(self.value).to_string(),
            self.unit.to_owned(),
            peers.join(", "),
            ratios.join(", "),
            details.join(" "),
        ]
    }
}

/// To three decimals, and to whole numbers where those are noise.
fn rounded(value: f64) -> f64 {
    if value.abs() >= 1000.0 { value.round() } else { (value * 1000.0).round() / 1000.0 }
}

/// Times of the same thing done again and again.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(Vec<Duration>);

impl Samples {
    pub(super) fn add(&mut self, took: Duration) {
        self.0.push(took);
    }

    pub(super) fn extend(&mut self, took: impl IntoIterator<Item = Duration>) {
        self.0.extend(took);
    }

    pub(super) fn append(&mut self, other: Samples) {
        self.0.extend(other.0);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Leaves out what came first, while everything warmed up.
    pub(super) fn without_first(mut self, count: usize) -> Samples {
        self.0.drain(..count.min(self.0.len()));
        self
    }

    /// The smallest time that `percent` of all times do not exceed, in milliseconds; none of nothing.
    pub(super) fn percentile_ms(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted.get(place).map(|took| took.as_secs_f64() * 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile_ms(50), None);
        samples.extend((1..=101).rev().map(Duration::from_millis));
        let samples = samples.without_first(1);
        assert_eq!(samples.len(), 100);
        assert_eq!([1, 50, 99, 100].map(|percent| samples.percentile_ms(percent).unwrap()), [1.0, 50.0, 99.0, 100.0]);
    }

    #[test]
    fn the_ratio_says_how_many_times_better() {
        let figure = Figure::new("tool_call.p50_ms", 2.0, "ms");
        assert_eq!(figure.ratio(30.0), Some(15.0));
        assert_eq!(Figure::new("worker.idle_rss_mib", 0.0, "MiB").ratio(30.0), None);
        let rate = Figure::new("egress.requests_per_s", 30.0, "1/s").larger_is_better();
        assert_eq!(rate.ratio(2.0), Some(15.0));
        assert_eq!(rate.ratio(0.0), None);
        let shown = figure.beside("python_worker", 30.0).beside("typescript_worker", 5.0);
        let cells = shown.show(Output::new(crate::output::Format::Text));
        assert_eq!(cells[3..5], ["python_worker 30, typescript_worker 5", "15.0×, 2.5×"]);
    }
}
