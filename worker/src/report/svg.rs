//! Charts as inline SVG. Pure text; colours come from the page's style, every name is escaped.

use super::text::{cut, escape};
use std::fmt::Write;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 30.0;
/// About so many marks on an axis.
const TICKS: f64 = 6.0;
/// Longest label of the matrix, in characters.
const MAX_LABEL: usize = 16;

/// A line of a chart.
pub struct Line<'a> {
    /// Its name in the legend.
    pub name: &'a str,
    /// Its class in the page's style: `one`, `two` or `three`.
    pub class: &'a str,
    /// Its values, one an epoch.
    pub values: Vec<f64>,
}

/// Round numbers from `low` to `high`, and how many digits after the point tell them apart.
fn ticks(low: f64, high: f64) -> (Vec<f64>, usize) {
    let rough = (high - low) / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|step| *step >= rough)
        .unwrap_or(power * 10.0);
    let first = (low / step).ceil();
    let count = ((high / step).floor() - first).max(0.0) as usize;
    let marks = (0..=count).map(|i| (first + i as f64) * step).collect();
    (marks, (-step.log10().floor()).clamp(0.0, 6.0) as usize)
}

/// Text of a mark on the axis of values.
fn mark(value: f64, digits: usize, largest: f64) -> String {
    if largest >= 1e5 {
        format!("{value:.1e}")
    } else {
        format!("{value:.digits$}")
    }
}

/// Lines over epochs, with a mark at the epoch `kept` (from 1). Empty where there is no finite value.
pub fn lines(lines: &[Line<'_>], kept: usize) -> String {
    let all = || {
        lines
            .iter()
            .flat_map(|l| l.values.iter().copied())
            .filter(|v| v.is_finite())
    };
    let (mut low, mut high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if !low.is_finite() {
        return String::new();
    }
    if high - low <= 1e-9 * high.abs().max(1e-9) {
        // A flat line lies in the middle.
        let room = 0.5 * high.abs().max(1e-3);
        (low, high) = (low - room, high + room);
    }
    let count = lines.iter().map(|l| l.values.len()).max().unwrap_or(1).max(1);
    let x = |epoch: f64| LEFT + (WIDTH - LEFT - RIGHT) * (epoch - 1.0) / (count.max(2) - 1) as f64;
    let y = |v: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - (v - low) / (high - low));
    let mut svg = format!("<figure><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    let (marks, digits) = ticks(low, high);
    for value in marks {
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" class=\"grid\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" class=\"axis\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y(value) + 4.0,
            mark(value, digits, low.abs().max(high.abs())),
            y = y(value)
        );
    }
    for epoch in epochs(count) {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" class=\"axis\">{epoch}</text>",
            x(epoch as f64),
            HEIGHT - BOTTOM + 18.0
        );
    }
    if (1..=count).contains(&kept) {
        let _ = write!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{}\" class=\"kept\"/>",
            HEIGHT - BOTTOM,
            at = x(kept as f64)
        );
    }
    for line in lines {
        let points: Vec<String> = (1..)
            .zip(&line.values)
            .filter(|(_, v)| v.is_finite())
            .map(|(epoch, v)| format!("{:.1},{:.1}", x(f64::from(epoch)), y(*v)))
            .collect();
        // A single point has no line: it is drawn as a short one.
        let last = points.last().filter(|_| points.len() == 1);
        let rest = last.map_or(String::new(), |_| {
            format!(" {:.1},{:.1}", x(1.0) + 4.0, y(line.values[0]))
        });
        let _ = write!(
            svg,
            "<polyline points=\"{}{rest}\" class=\"line {}\"/>",
            points.join(" "),
            line.class
        );
    }
    svg.push_str("</svg><figcaption>");
    for line in lines {
        let _ = write!(
            svg,
            "<span><span class=\"swatch {}\"></span>{}</span> &nbsp; ",
            line.class,
            escape(line.name)
        );
    }
    let _ = write!(
        svg,
        "<span>over {count} epochs, kept epoch {kept}</span></figcaption></figure>"
    );
    svg
}

/// The epochs that are written below the axis: the first, the last, and round ones between that leave room.
fn epochs(count: usize) -> Vec<usize> {
    let mut epochs = vec![1];
    if count > 1 {
        let (marks, _) = ticks(1.0, count as f64);
        let room = (count as f64 / TICKS / 2.0).max(1.0);
        epochs.extend(
            marks
                .into_iter()
                .filter(|m| m.fract() == 0.0 && *m >= 1.0 + room && *m <= count as f64 - room)
                .map(|m| m as usize),
        );
        epochs.push(count);
    }
    epochs
}

/// A confusion matrix; the fuller a cell, the larger its share of the row.
pub fn matrix(labels: &[String], rows: &[Vec<usize>]) -> String {
    let n = labels.len().max(1) as f64;
    let cell = (440.0 / n).clamp(8.0, 44.0);
    let font = (cell * 0.45).clamp(5.0, 12.0);
    let longest = labels.iter().map(|l| l.chars().count().min(MAX_LABEL + 1)).max();
    let left = 12.0 + longest.unwrap_or(0) as f64 * font * 0.62;
    let (width, height) = (left + cell * n + 6.0, cell * n + left + 4.0);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width:.0} {height:.0}\" style=\"max-width:{width:.0}px;min-width:{:.0}px;font-size:{font:.1}px\" \
         role=\"img\">",
        width.min(320.0)
    );
    for (truth, (label, row)) in labels.iter().zip(rows).enumerate() {
        let total: usize = row.iter().sum();
        let y = cell * truth as f64;
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            y + f64::midpoint(cell, font) - 1.0,
            escape(&cut(label, MAX_LABEL))
        );
        for (answer, count) in row.iter().enumerate() {
            let share = if total == 0 { 0.0 } else { *count as f64 / total as f64 };
            let x = left + cell * answer as f64;
            let class = if truth == answer { "hit" } else { "miss" };
            let _ = write!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{cell:.1}\" height=\"{cell:.1}\" class=\"cell {class}\" \
                 fill-opacity=\"{share:.3}\"><title>{} as {}: {count}</title></rect>",
                super::text::name(label),
                super::text::name(labels.get(answer).map_or("", String::as_str))
            );
            if *count > 0 && cell >= 18.0 {
                let ink = if share > 0.5 { " class=\"on\"" } else { "" };
                let _ = write!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\"{ink}>{count}</text>",
                    x + cell / 2.0,
                    y + f64::midpoint(cell, font) - 1.0
                );
            }
        }
    }
    for (answer, label) in labels.iter().enumerate() {
        let (x, y) = (left + cell * (answer as f64 + 0.5) + font / 3.0, cell * n + 8.0);
        let _ = write!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"end\" transform=\"rotate(-70 {x:.1} {y:.1})\">{}</text>",
            escape(&cut(label, MAX_LABEL))
        );
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_inside() {
        let (marks, digits) = ticks(0.4137, 2.281);
        assert_eq!(digits, 1);
        let text: Vec<String> = marks.iter().map(|m| format!("{m:.1}")).collect();
        assert_eq!(text, ["0.5", "1.0", "1.5", "2.0"]);
        assert_eq!(epochs(1), [1]);
        assert_eq!(epochs(2), [1, 2]);
        assert_eq!(epochs(34), [1, 10, 20, 30, 34]);
        assert_eq!(epochs(31), [1, 5, 10, 15, 20, 25, 31]);
        assert_eq!(epochs(100), [1, 20, 40, 60, 80, 100]);
    }

    #[test]
    fn odd_curves_are_drawn_without_odd_numbers() {
        let line = |values: Vec<f64>| {
            lines(
                &[Line {
                    name: "<loss>",
                    class: "one",
                    values,
                }],
                1,
            )
        };
        for values in [
            vec![0.5],
            vec![0.5; 7],
            vec![0.0, 0.0],
            vec![1.0, f64::NAN, 3.0],
            vec![1e12, 3e12],
            vec![-1e-12, 1e-12],
        ] {
            let svg = line(values.clone());
            assert!(
                svg.contains("<polyline points=\"") && svg.contains("&lt;loss&gt;"),
                "{values:?}"
            );
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{values:?}: {svg}");
        }
        assert_eq!(line(vec![f64::NAN]), "");
        assert_eq!(line(Vec::new()), "");
    }
}
