//! Small charts as inline SVG. Pure text; every name is escaped.

use super::html::escape;
use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 56.0;
const BOTTOM: f64 = 28.0;
const TOP: f64 = 10.0;

/// A line of a chart.
pub struct Line<'a> {
    /// Its name in the legend.
    pub name: &'a str,
    /// Its colour.
    pub colour: &'a str,
    /// Its values, one an epoch.
    pub values: Vec<f64>,
}

/// Lines over epochs, with a mark at `marked` (from 1).
pub fn lines(lines: &[Line<'_>], marked: usize) -> String {
    let all = || {
        lines
            .iter()
            .flat_map(|l| l.values.iter().copied())
            .filter(|v| v.is_finite())
    };
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if !low.is_finite() {
        return String::new();
    }
    let span = if high > low { high - low } else { 1.0 };
    let count = lines.iter().map(|l| l.values.len()).max().unwrap_or(1);
    let x = |i: usize| LEFT + (WIDTH - LEFT - 10.0) * i as f64 / (count.max(2) - 1) as f64;
    let y = |v: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - (v - low) / span);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for step in 0..=4 {
        let value = low + span * f64::from(step) / 4.0;
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" class=\"grid\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.3}</text>",
            WIDTH - 10.0,
            LEFT - 6.0,
            y(value) + 4.0,
            y = y(value)
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{LEFT}\" y=\"{0}\">epoch 1</text><text x=\"{1}\" y=\"{0}\" text-anchor=\"end\">{count}</text>",
        HEIGHT - 8.0,
        WIDTH - 10.0
    );
    if (1..=count).contains(&marked) {
        let at = x(marked - 1);
        let _ = write!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{}\" class=\"mark\"/>",
            HEIGHT - BOTTOM
        );
    }
    for line in lines {
        let points: Vec<String> = line
            .values
            .iter()
            .enumerate()
            .filter(|(_, v)| v.is_finite())
            .map(|(i, v)| format!("{:.1},{:.1}", x(i), y(*v)))
            .collect();
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
            points.join(" "),
            line.colour
        );
    }
    svg.push_str("</svg><p class=\"legend\">");
    for line in lines {
        let _ = write!(
            svg,
            "<span style=\"color:{}\">&#9632;</span> {} ",
            line.colour,
            escape(line.name)
        );
    }
    let _ = write!(svg, "<span class=\"dim\">&#9474; kept epoch {marked}</span></p>");
    svg
}

/// A confusion matrix; the darker a cell, the larger its share of the row.
pub fn matrix(labels: &[String], rows: &[Vec<usize>]) -> String {
    let n = labels.len().max(1) as f64;
    let cell = (440.0 / n).clamp(6.0, 44.0);
    let left = 130.0;
    let size = left + cell * n;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {0:.0} {1:.0}\" style=\"max-width:{0:.0}px\" role=\"img\">",
        size + 4.0,
        cell * n + 110.0
    );
    for (t, (label, row)) in labels.iter().zip(rows).enumerate() {
        let total: usize = row.iter().sum();
        let y = cell * t as f64;
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            y + cell / 2.0 + 4.0,
            escape(&short(label))
        );
        for (p, count) in row.iter().enumerate() {
            let share = if total == 0 { 0.0 } else { *count as f64 / total as f64 };
            let x = left + cell * p as f64;
            let colour = if t == p { "37,99,235" } else { "220,38,38" };
            let _ = write!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{cell:.1}\" height=\"{cell:.1}\" \
                 fill=\"rgba({colour},{share:.3})\" stroke=\"#e5e7eb\"><title>{} as {}: {count}</title></rect>",
                escape(label),
                escape(labels.get(p).map_or("", String::as_str))
            );
            if *count > 0 && cell >= 18.0 {
                let ink = if share > 0.55 { "#fff" } else { "#111827" };
                let _ = write!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{ink}\">{count}</text>",
                    x + cell / 2.0,
                    y + cell / 2.0 + 4.0
                );
            }
        }
    }
    for (p, label) in labels.iter().enumerate() {
        let (x, y) = (left + cell * (p as f64 + 0.5) + 3.0, cell * n + 8.0);
        let _ = write!(
            svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"end\" transform=\"rotate(-60 {x:.1} {y:.1})\">{}</text>",
            escape(&short(label))
        );
    }
    svg.push_str("</svg>");
    svg
}

fn short(label: &str) -> String {
    let mut text: String = label.chars().take(16).collect();
    if label.chars().count() > 16 {
        text.push('…');
    }
    text
}
