//! The text a scrape gets (OpenMetrics), and the same read back.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use crate::{ByLabel, ByLabels, Counter, Histogram, Label, Observed, process};

/// What a scrape's answer takes about; it grows where that is too little.
const PAGE_BYTES: usize = 32 << 10;

/// Takes families in, under the names they are read by: `_total` for counters, `_seconds` and `_bytes`
/// where a number has that unit.
pub struct Page<'a>(DescriptorEncoder<'a>);

impl fmt::Debug for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Page").finish()
    }
}

impl Page<'_> {
    /// One number that only grows. The name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, MetricType::Counter, |encoder| {
            put_counter(encoder, value)
        })
    }

    /// The same for every value of a label.
    pub fn counters<L: Label>(
        &mut self,
        name: &'static str,
        help: &str,
        counters: &ByLabel<L, Counter>,
    ) -> fmt::Result {
        let values = counters.iter();
        let values = values.map(|(label, counter)| ([(L::NAME, label.as_str())], counter.get()));
        self.counters_of(name, help, values)
    }

    /// Counters with labels whose number the caller bounds.
    pub fn counters_of<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'static str, impl AsRef<str>); N], u64)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Counter, |encoder| {
            for (labels, value) in values {
                let labels = labels.each_ref().map(|(key, text)| (*key, text.as_ref()));
                put_counter(&mut encoder.encode_family(&labels)?, value)?;
            }
            Ok(())
        })
    }

    /// One number that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, |encoder| {
            put_gauge(encoder, value)
        })
    }

    /// Gauges with labels whose number the caller bounds.
    pub fn gauges_of<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'static str, impl AsRef<str>); N], u64)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, |encoder| {
            for (labels, value) in values {
                let labels = labels.each_ref().map(|(key, text)| (*key, text.as_ref()));
                put_gauge(&mut encoder.encode_family(&labels)?, value)?;
            }
            Ok(())
        })
    }

    /// A number with a fraction that only grows.
    pub(crate) fn counter_f64(
        &mut self,
        name: &'static str,
        help: &str,
        value: f64,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Counter, |encoder| {
            encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None)
        })
    }

    /// A number with a fraction.
    pub(crate) fn gauge_f64(&mut self, name: &'static str, help: &str, value: f64) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, |encoder| {
            encoder.encode_gauge(&value)
        })
    }

    /// How long something takes. The name ends in `_seconds`.
    pub fn histogram(
        &mut self,
        name: &'static str,
        help: &str,
        histogram: &Histogram,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Histogram, |encoder| {
            put_histogram(encoder, histogram)
        })
    }

    /// The same for every value of a label.
    pub fn histograms<L: Label>(
        &mut self,
        name: &'static str,
        help: &str,
        histograms: &ByLabel<L, Histogram>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Histogram, |encoder| {
            for (label, histogram) in histograms.iter() {
                let labels = [(L::NAME, label.as_str())];
                put_histogram(&mut encoder.encode_family(&labels)?, histogram)?;
            }
            Ok(())
        })
    }

    /// The same for every pair of values, but for those that never were: they would be most of the page.
    pub fn histograms_seen<A: Label, B: Label>(
        &mut self,
        name: &'static str,
        help: &str,
        histograms: &ByLabels<A, B, Histogram>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Histogram, |encoder| {
            for (a, b, histogram) in histograms.iter() {
                if histogram.count() > 0 {
                    let labels = [(A::NAME, a.as_str()), (B::NAME, b.as_str())];
                    put_histogram(&mut encoder.encode_family(&labels)?, histogram)?;
                }
            }
            Ok(())
        })
    }

    fn family(
        &mut self,
        name: &'static str,
        help: &str,
        kind: MetricType,
        put: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        // The encoder appends both.
        let bare = match kind {
            MetricType::Counter => name.strip_suffix("_total").unwrap_or(name),
            _ => name,
        };
        let (bare, unit) = match (bare.strip_suffix("_seconds"), bare.strip_suffix("_bytes")) {
            (Some(bare), _) => (bare, Some(Unit::Seconds)),
            (_, Some(bare)) => (bare, Some(Unit::Bytes)),
            (None, None) => (bare, None),
        };
        put(&mut self.0.encode_descriptor(bare, help, unit.as_ref(), kind)?)
    }
}

fn put_counter(encoder: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_counter::<NoLabelSet, u64, f64>(&value, None)
}

fn put_gauge(encoder: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_gauge(&value)
}

fn put_histogram(encoder: &mut MetricEncoder<'_>, histogram: &Histogram) -> fmt::Result {
    let (sum, count, buckets) = histogram.snapshot();
    encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

/// Everything, as `/metrics` answers it.
///
/// # Errors
/// Those of formatting: none in practice.
pub fn scrape(observed: &std::sync::Arc<dyn Observed>) -> Result<String, fmt::Error> {
    struct All(std::sync::Arc<dyn Observed>);
    impl fmt::Debug for All {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_tuple("All").finish()
        }
    }
    impl Collector for All {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let mut page = Page(encoder);
            self.0.tell(&mut page)?;
            process::tell(&mut page)
        }
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(All(std::sync::Arc::clone(observed))));
    let mut text = String::with_capacity(PAGE_BYTES);
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// One family of a page that was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// Its name as queries use it: a counter's ends in `_total`.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// What it means.
    pub help: String,
    /// The names of its labels, in order of first mention; without a histogram's `le`.
    pub labels: Vec<String>,
}

/// The families of a page, in its order: for tests that hold documents against processes.
#[must_use]
pub fn families(page: &str) -> Vec<Family> {
    let mut all: Vec<Family> = Vec::new();
    for line in page.lines() {
        if let Some((name, help)) = directive(line, "# HELP ") {
            all.push(Family {
                name: name.to_owned(),
                kind: String::new(),
                help: help.to_owned(),
                labels: Vec::new(),
            });
        } else if let (Some((_, kind)), Some(family)) = (directive(line, "# TYPE "), all.last_mut())
        {
            kind.clone_into(&mut family.kind);
            if kind == "counter" {
                family.name.push_str("_total");
            }
        } else if let (Some((_, rest)), Some(family)) = (line.split_once('{'), all.last_mut())
            && !line.starts_with('#')
        {
            for label in rest.split("\",").filter_map(|one| one.split_once('=')) {
                let known = family.labels.iter().any(|known| known == label.0);
                if !known && label.0 != "le" {
                    family.labels.push(label.0.to_owned());
                }
            }
        }
    }
    all
}

fn directive<'a>(line: &'a str, which: &str) -> Option<(&'a str, &'a str)> {
    line.strip_prefix(which)?.split_once(' ')
}
