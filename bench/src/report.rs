//! A figure, for people or as a line of JSON.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::stats::Rounds;

/// One figure with its spread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The median over rounds, in `unit`.
    pub median: f64,
    /// The worst and best rounds, in `unit`.
    pub min: f64,
    /// See `min`.
    pub max: f64,
    /// What is counted.
    pub unit: Cow<'static, str>,
    /// What is to be reached, in `unit`, where there is such a thing.
    pub target: Option<f64>,
    /// Anything a reader must know.
    pub note: String,
}

impl Figure {
    /// The figure of some rounds.
    #[must_use]
    pub fn new(name: impl Into<String>, rounds: &Rounds, unit: &'static str) -> Self {
        let (min, max) = rounds.range();
        Self {
            name: name.into(),
            median: rounds.median(),
            min,
            max,
            unit: Cow::Borrowed(unit),
            target: None,
            note: String::new(),
        }
    }

    /// With what is to be reached.
    #[must_use]
    pub fn target(mut self, target: f64) -> Self {
        self.target = Some(target);
        self
    }

    /// With a note.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Times and memory are the better the smaller they are; what is done in a second the larger.
    #[must_use]
    pub fn less_is_better(&self) -> bool {
        !self.unit.ends_with("/s")
    }

    /// A value of it by what is to be reached: 1 is reached, more is better.
    #[must_use]
    pub fn of_target(&self, value: f64) -> Option<f64> {
        let target = self.target?;
        let (above, below) = match self.less_is_better() {
            true => (target, value),
            false => (value, target),
        };
        (below > 0.0).then_some(above / below)
    }

    /// The median by what is to be reached.
    #[must_use]
    pub fn reached(&self) -> Option<f64> {
        self.of_target(self.median)
    }

    /// As columns of text, under [`HEADINGS`].
    #[must_use]
    pub fn row(&self) -> [String; 5] {
        [
            self.name.clone(),
            format!("{} {}", short(self.median), self.unit),
            self.target.map_or_else(String::new, short),
            format!("{} .. {}", short(self.min), short(self.max)),
            self.note.clone(),
        ]
    }
}

/// Headings of [`Figure::row`].
pub const HEADINGS: [&str; 5] = ["figure", "median", "reach", "worst .. best", "note"];

/// 12.3 M and the like.
pub(crate) fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.2} M", v / 1e6),
        v if v >= 1e4 => format!("{:.1} k", v / 1e3),
        v if v >= 100.0 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    }
}
