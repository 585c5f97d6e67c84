//! What was measured, and what people and programs read of it.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::output::Output;

/// One figure, side by side with a peer's where there is one.
#[derive(Debug, Clone)]
pub(super) struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    peer: Option<(&'static str, f64)>,
    details: Map<String, Value>,
}

impl Figure {
    pub(super) fn new(name: &'static str, value: f64, unit: &'static str) -> Figure {
        Figure { name, value, unit, peer: None, details: Map::new() }
    }

    /// Beside it: the same thing done by something else. Of all figures that have a peer the smaller one is the better.
    #[must_use]
    pub(super) fn beside(self, peer: &'static str, value: f64) -> Figure {
        Figure { peer: Some((peer, value)), ..self }
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

    fn ratio(&self) -> Option<f64> {
        self.peer.filter(|_| self.value > 0.0).map(|(_, value)| value / self.value)
    }

    /// Hands it to programs, and what it says to the table.
    pub(super) fn show(&self, out: Output) -> Vec<String> {
        let mut object = json!({"figure": self.name, "value": rounded(self.value), "unit": self.unit});
        if let Some((peer, value)) = self.peer {
            object["peer"] = json!(peer);
            object["peer_value"] = json!(rounded(value));
            object["ratio"] = json!(self.ratio().map(rounded));
        }
        for (detail, value) in &self.details {
            object[detail] = value.clone();
        }
        out.object(&object);
        let peer = self.peer.map(|(peer, value)| format!("{peer} {}", rounded(value))).unwrap_or_default();
        let ratio = self.ratio().map(|ratio| format!("{ratio:.1}×")).unwrap_or_default();
        let details: Vec<_> = self.details.iter().map(|(detail, value)| format!("{detail}={value}")).collect();
        vec![
            self.name.to_owned(),
            rounded(self.value).to_string(),
            self.unit.to_owned(),
            peer,
            ratio,
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
        assert_eq!(figure.ratio(), None);
        assert_eq!(figure.beside("python_worker", 30.0).ratio(), Some(15.0));
    }
}
