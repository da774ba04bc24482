//! Is a curve flat? A straight line through it, against its noise.

use serde::Serialize;

/// Growth over the stretch looked at that is taken for none: what a steady population's ups and downs
/// do to an allocator, and far less than what anything kept per block or session would add to it.
const TOLERANCE: f64 = 0.02;
/// Fewer points than this say nothing of noise.
const LEAST_POINTS: usize = 8;
/// Standard errors either side: 19 of 20 lie within.
const ERRORS: f64 = 2.0;

/// A straight line through some points, and how far it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fit {
    /// How many points.
    pub points: usize,
    /// From the first to the last, in seconds.
    pub span_s: f64,
    /// Their mean, in the points' unit.
    pub mean: f64,
    /// What the line rises over the span, in the points' unit.
    pub growth: f64,
    /// The growth's standard error. Points that follow each other are alike (memory that was given back
    /// stays so for a while), so they count for fewer than they are.
    pub growth_error: f64,
    /// Standard deviation of the points from the line.
    pub noise: f64,
}

/// What a fit says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It may grow by less than the tolerance, as far as can be told: it is flat.
    Flat,
    /// It grows by more than that.
    Growing,
    /// Too noisy or too short to tell. Run longer.
    Unclear,
}

impl Fit {
    /// The line of least squares through (seconds, value). None through few points or one moment.
    #[must_use]
    pub fn of(points: &[(f64, f64)]) -> Option<Self> {
        let count = points.len() as f64;
        let (first, last) = (points.first()?.0, points.last()?.0);
        let span_s = last - first;
        if points.len() < LEAST_POINTS || span_s <= 0.0 {
            return None;
        }
        let mean_of = |part: fn(&(f64, f64)) -> f64| points.iter().map(part).sum::<f64>() / count;
        let (middle, mean) = (mean_of(|p| p.0), mean_of(|p| p.1));
        let squares: f64 = points.iter().map(|p| (p.0 - middle).powi(2)).sum();
        let products: f64 = points.iter().map(|p| (p.0 - middle) * (p.1 - mean)).sum();
        let slope = products / squares;
        let off: Vec<f64> = points
            .iter()
            .map(|p| p.1 - mean - slope * (p.0 - middle))
            .collect();
        let off_squares: f64 = off.iter().map(|o| o * o).sum();
        let variance = off_squares / (count - 2.0);
        let error = (variance / squares).sqrt() * likeness(&off, off_squares).sqrt();
        Some(Self {
            points: points.len(),
            span_s,
            mean,
            growth: slope * span_s,
            growth_error: error * span_s,
            noise: variance.sqrt(),
        })
    }

    /// What it says.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let tolerance = TOLERANCE * self.mean;
        let doubt = ERRORS * self.growth_error;
        if self.growth + doubt <= tolerance {
            Verdict::Flat
        } else if self.growth > tolerance && self.growth > doubt {
            Verdict::Growing
        } else {
            Verdict::Unclear
        }
    }
}

/// How many points in a row count for one: from the correlation of neighbours.
fn likeness(off: &[f64], squares: f64) -> f64 {
    if squares == 0.0 {
        return 1.0;
    }
    let neighbours: f64 = off
        .windows(2)
        .map(|pair| pair.iter().product::<f64>())
        .sum();
    let correlation = (neighbours / squares).clamp(0.0, 0.99);
    (1.0 + correlation) / (1.0 - correlation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::mix;

    /// A hundred points around a thousand: noise of so much either way, and growth over all of them.
    fn points(noise: f64, growth: f64) -> Vec<(f64, f64)> {
        let one = |n: u64| {
            let random = (mix(n + 1) >> 11) as f64 / (1u64 << 53) as f64;
            let at = n as f64;
            (
                at,
                1_000.0 + noise * (2.0 * random - 1.0) + growth * at / 99.0,
            )
        };
        (0..100).map(one).collect()
    }

    fn verdict(noise: f64, growth: f64) -> Verdict {
        Fit::of(&points(noise, growth)).unwrap().verdict()
    }

    #[test]
    fn a_line_is_found() {
        let fit = Fit::of(&points(0.0, 50.0)).unwrap();
        assert!(
            (fit.growth - 50.0).abs() < 1e-6 && fit.noise < 1e-6,
            "{fit:?}"
        );
        assert!((fit.mean - 1_025.0).abs() < 1e-6, "{fit:?}");
        let fit = Fit::of(&points(30.0, 0.0)).unwrap();
        assert!((10.0..30.0).contains(&fit.noise), "{fit:?}");
    }

    #[test]
    fn growth_is_told_from_noise() {
        assert_eq!(verdict(20.0, 0.0), Verdict::Flat);
        assert_eq!(verdict(20.0, -300.0), Verdict::Flat, "less is no leak");
        assert_eq!(verdict(20.0, 60.0), Verdict::Growing);
        assert_eq!(verdict(500.0, 20.0), Verdict::Unclear, "lost in noise");
    }

    #[test]
    fn neighbours_that_are_alike_count_for_fewer() {
        // The same noise, in steps of ten points each.
        let plain = points(20.0, 0.0);
        let steps: Vec<_> = plain
            .iter()
            .zip(plain.iter().flat_map(|p| [p; 10]))
            .map(|(at, value)| (at.0, value.1))
            .collect();
        let (plain, steps) = (Fit::of(&plain).unwrap(), Fit::of(&steps).unwrap());
        assert!(steps.growth_error > 2.0 * plain.growth_error);
    }

    #[test]
    fn few_points_say_nothing() {
        assert_eq!(Fit::of(&points(1.0, 0.0)[..LEAST_POINTS - 1]), None);
        assert_eq!(Fit::of(&[(1.0, 1.0); 20]), None);
        assert_eq!(Fit::of(&[]), None);
    }
}
