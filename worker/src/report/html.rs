//! The report as one page: no script, nothing loaded from elsewhere, light or dark as the reader's system is, every name
//! from outside escaped.

use super::svg::{Line, lines, matrix};
use super::text::{escape, megabytes, name, number};
use super::{MemoryOf, Report};
use crate::data::Part;
use crate::gates::Check;
use fleetune_crds::outcome::{REASON_INCONCLUSIVE, REASON_PASSED};
use std::fmt::Write;

const STYLE: &str = include_str!("style.css");
/// Most classes that a table lists; the JSON has all of them.
const MAX_CLASSES: usize = 200;
/// Begins a table that scrolls by itself where the page is too narrow for it.
const TABLE: &str = "<div class=\"wide\"><table>";
const END: &str = "</table></div>";

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut html = String::with_capacity(64 << 10);
    let title = format!("{}/{}", name(&report.namespace), name(&report.model_name));
    let class = match report.verdict.reason.as_str() {
        REASON_PASSED => "good",
        REASON_INCONCLUSIVE => "unsure",
        _ => "bad",
    };
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{title}: report</title>\
         <style>{STYLE}</style></head><body><h1>{title}</h1>\
         <p><span class=\"badge {class}\">{}</span> {}</p>\
         <p class=\"dim\">{:?}, report on candidate <code>{}</code></p>",
        escape(&report.verdict.reason),
        escape(&report.verdict.message),
        report.task,
        report.candidate
    );
    metrics(&mut html, report);
    checks(&mut html, "Gates", &report.gates);
    checks(&mut html, "Budget of class *", &report.budget_checks);
    curves(&mut html, report);
    classes(&mut html, report);
    cost(&mut html, report);
    data(&mut html, report);
    lineage(&mut html, report);
    html.push_str("</body></html>\n");
    html
}

fn metrics(html: &mut String, report: &Report) {
    let _ = write!(html, "<h2>Metrics on {} test rows</h2>{TABLE}<tr><th>", report.samples);
    for metric in report.metrics.keys() {
        let _ = write!(html, "<th class=\"n\">{}", escape(metric));
    }
    html.push_str("<tr class=\"own\"><td>this model");
    for value in report.metrics.values() {
        let _ = write!(html, "<td class=\"n\">{}", number(*value));
    }
    for baseline in &report.baselines {
        let _ = write!(html, "<tr><td>{}", name(&baseline.name));
        for metric in report.metrics.keys() {
            let value = baseline.metrics.get(metric).map_or(String::new(), |v| number(*v));
            let _ = write!(html, "<td class=\"n\">{value}");
        }
    }
    let told: Vec<String> = report
        .baselines
        .iter()
        .map(|b| format!("{}: {}", name(&b.name), escape(&b.what)))
        .collect();
    let _ = write!(html, "{END}<p class=\"dim\">{}.</p>", told.join("; "));
}

/// A bound or what was measured, in the unit that belongs to the bound's name.
fn amount(check: &Check, value: f64) -> String {
    match check.name.as_str() {
        "maxBytes" | "maxPeakMemory" => megabytes(value),
        "maxP95Latency" => format!("{value:.2} ms"),
        _ => number(value),
    }
}

fn checks(html: &mut String, title: &str, checks: &[Check]) {
    let _ = write!(html, "<h2>{title}</h2>");
    if checks.is_empty() {
        html.push_str("<p class=\"dim\">none</p>");
        return;
    }
    let beside = checks.iter().any(|check| check.baseline.is_some());
    let _ = write!(
        html,
        "{TABLE}<tr><th>bound<th class=\"n\">asked for<th class=\"n\">measured{}<th>holds",
        if beside { "<th class=\"n\">baseline" } else { "" }
    );
    for check in checks {
        let (class, word) = if check.ok { ("good", "yes") } else { ("bad", "no") };
        let _ = write!(
            html,
            "<tr><td>{}<td class=\"n\">{}<td class=\"n\">{}",
            name(&check.name),
            amount(check, check.wanted),
            amount(check, check.value)
        );
        if beside {
            let baseline = check.baseline.map_or(String::new(), number);
            let _ = write!(html, "<td class=\"n\">{baseline}");
        }
        let _ = write!(html, "<td class=\"{class}\">{word}");
    }
    html.push_str(END);
}

fn curves(html: &mut String, report: &Report) {
    let of = |f: fn(&crate::train::Epoch) -> f64| report.history.iter().map(f).collect::<Vec<f64>>();
    let kept = report.lineage.training.best_epoch as usize;
    html.push_str("<h2>Learning curves</h2><div class=\"charts\">");
    html.push_str(&lines(
        &[
            Line {
                name: "training loss",
                class: "one",
                values: of(|e| e.train_loss),
            },
            Line {
                name: "validation loss",
                class: "two",
                values: of(|e| e.validation_loss),
            },
        ],
        kept,
    ));
    html.push_str(&lines(
        &[Line {
            name: &format!("{} on the validation rows", report.objective),
            class: "three",
            values: of(|e| e.objective),
        }],
        kept,
    ));
    html.push_str("</div>");
}

/// Says how many classes a table leaves out.
fn more(html: &mut String, classes: usize) {
    if classes > MAX_CLASSES {
        let _ = write!(
            html,
            "<p class=\"dim\">and {} more classes: report.json has all of them</p>",
            classes - MAX_CLASSES
        );
    }
}

fn classes(html: &mut String, report: &Report) {
    if report.classes.is_empty() {
        return;
    }
    let _ = write!(
        html,
        "<h2>Classes</h2>{TABLE}<tr><th>label<th class=\"n\">precision<th class=\"n\">recall<th class=\"n\">F1\
         <th class=\"n\">test rows"
    );
    for (label, score) in report.classes.iter().take(MAX_CLASSES) {
        let _ = write!(
            html,
            "<tr><td>{}<td class=\"n\">{:.4}<td class=\"n\">{:.4}<td class=\"n\">{:.4}<td class=\"n\">{}",
            name(label),
            score.precision,
            score.recall,
            score.f1,
            score.support
        );
    }
    html.push_str(END);
    more(html, report.classes.len());
    if let Some(confusion) = &report.confusion {
        html.push_str(
            "<h2>Confusion matrix</h2><p class=\"dim\">Rows: the truth. Columns: the answer. The fuller a cell, the larger \
             its share of the row; red is wrong.</p><div class=\"wide\">",
        );
        html.push_str(&matrix(&confusion.labels, &confusion.rows));
        html.push_str("</div>");
    }
}

/// A table of a name and a value in each row.
fn pairs(html: &mut String, rows: &[(&str, String)]) {
    html.push_str(TABLE);
    for (key, value) in rows {
        let _ = write!(html, "<tr><td>{key}<td class=\"n\">{value}");
    }
    html.push_str(END);
}

fn cost(html: &mut String, report: &Report) {
    let cost = &report.cost;
    let memory = match cost.peak_memory_of {
        MemoryOf::Child => "peak memory of a process that loads the version and answers",
        MemoryOf::Validate => "peak memory of the validating process, which holds the data set too",
    };
    html.push_str("<h2>Cost</h2>");
    pairs(
        html,
        &[
            ("files", megabytes(cost.bytes as f64)),
            (
                "latency of one sample, median",
                format!("{:.2} ms", cost.p50_latency_ms),
            ),
            (
                "latency of one sample, 95th percentile",
                format!("{:.2} ms", cost.p95_latency_ms),
            ),
            (memory, megabytes(cost.peak_memory_bytes as f64)),
            (
                "self-test: tolerance on a node",
                format!("{:.1e}", report.self_test.tolerance),
            ),
            (
                "self-test: spread over sets of CPU kernels",
                format!(
                    "{:.1e} over {}",
                    report.self_test.spread,
                    report.self_test.variants.len()
                ),
            ),
        ],
    );
}

fn data(html: &mut String, report: &Report) {
    let data = &report.data;
    let _ = write!(html, "<h2>Data checks</h2>{TABLE}");
    let mut row = |what: &str, count: usize, warn: bool| {
        let class = if warn && count > 0 { " bad" } else { "" };
        let _ = write!(html, "<tr><td>{}<td class=\"n{class}\">{count}", escape(what));
    };
    row("samples", data.samples, false);
    for part in Part::ALL {
        let count = data.parts.get(part.name()).copied().unwrap_or_default();
        row(&format!("rows in {}", part.name()), count, false);
    }
    row("missing values", data.missing_values, true);
    row("unreadable", data.unreadable, true);
    row("copies of another sample", data.duplicates, false);
    row("copies across parts", data.duplicates_across_parts, true);
    row("copies with another label", data.conflicting_labels, true);
    row(
        "look like a training row (validation and test)",
        data.near_duplicates_across_parts,
        true,
    );
    for (why, count) in &data.left_out {
        row(&format!("left out: {why}"), *count, false);
    }
    html.push_str(END);
    if !data.examples.is_empty() {
        html.push_str("<p class=\"dim\">for example:</p><ul class=\"dim\">");
        for example in &data.examples {
            let _ = write!(html, "<li>{}", escape(&super::text::cut(example, 300)));
        }
        html.push_str("</ul>");
    }
    if !data.classes.is_empty() {
        let _ = write!(
            html,
            "{TABLE}<tr><th>label<th class=\"n\">train<th class=\"n\">validation<th class=\"n\">test"
        );
        for (label, [train, validation, test]) in data.classes.iter().take(MAX_CLASSES) {
            let _ = write!(
                html,
                "<tr><td>{}<td class=\"n\">{train}<td class=\"n\">{validation}<td class=\"n\">{test}",
                name(label)
            );
        }
        html.push_str(END);
        more(html, data.classes.len());
    }
}

fn lineage(html: &mut String, report: &Report) {
    let lineage = &report.lineage;
    let training = &lineage.training;
    let _ = write!(html, "<h2>Lineage</h2>{TABLE}");
    let mut row = |key: &str, value: String| {
        let _ = write!(html, "<tr><td class=\"key\">{key}<td><code>{}</code>", escape(&value));
    };
    row("base model", format!("sha256:{}", lineage.base_model_sha256));
    row(
        "features",
        format!("{} ({} values)", lineage.features, lineage.feature_count),
    );
    row("data manifest", report.data_manifest.to_string());
    row("split", format!("{}, seed {}", lineage.split.by, lineage.split.seed));
    row(
        "training",
        format!(
            "{} {:?}, {} by {} at {}, {} epochs, seed {}",
            training.method,
            training.layers,
            training.loss,
            training.optimizer,
            training.learning_rate,
            training.epochs,
            training.seed
        ),
    );
    row("contract", report.contract.to_string());
    row(
        "worker",
        format!(
            "{} {} on {} {}",
            lineage.worker.version,
            lineage.worker.revision,
            lineage.worker.architecture,
            lineage.worker.cpu_features.join(" ")
        ),
    );
    html.push_str(END);
}
