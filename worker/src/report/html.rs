//! The report as one page: no script, nothing loaded from elsewhere, every name from outside escaped.

use super::svg::{Line, lines, matrix};
use super::{MemoryOf, Report};
use crate::gates::Check;
use std::fmt::Write;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;color:#111827;background:#fff;max-width:900px;margin:2rem auto;\
padding:0 1rem}h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem;border-bottom:1px solid #e5e7eb}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #f3f4f6}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.ok{color:#15803d}.bad{color:#b91c1c}.dim{color:#6b7280}\
.badge{display:inline-block;padding:.1rem .7rem;border-radius:1rem;color:#fff;font-weight:600}\
code{font-size:.85em;overflow-wrap:anywhere}svg{width:100%;height:auto;font-size:11px;fill:#374151}\
.grid{stroke:#e5e7eb}.mark{stroke:#9ca3af;stroke-dasharray:4 3}.legend{margin:.2rem 0}\
.best{background:#f9fafb;font-weight:600}";

/// Text with the five characters that mean something in HTML made harmless.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut html = String::with_capacity(64 << 10);
    let title = format!("{}/{}", escape(&report.namespace), escape(&report.model_name));
    let passed = report.verdict.reason == fleetune_crds::outcome::REASON_PASSED;
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{title}</title>\
         <style>{STYLE}</style></head><body><h1>{title}</h1>\
         <p><span class=\"badge\" style=\"background:{}\">{}</span> {}</p><p class=\"dim\">candidate <code>{}</code></p>",
        if passed { "#15803d" } else { "#b91c1c" },
        escape(&report.verdict.reason),
        escape(&report.verdict.message),
        report.candidate
    );
    metrics(&mut html, report);
    checks(&mut html, "Gates", &report.gates);
    checks(&mut html, "Budget (class *)", &report.budget_checks);
    curves(&mut html, report);
    classes(&mut html, report);
    cost(&mut html, report);
    data(&mut html, report);
    lineage(&mut html, report);
    html.push_str("</body></html>\n");
    html
}

fn metrics(html: &mut String, report: &Report) {
    let _ = write!(html, "<h2>Metrics on {} test rows</h2><table><tr><th>", report.samples);
    for name in report.metrics.keys() {
        let _ = write!(html, "<th class=\"n\">{}", escape(name));
    }
    html.push_str("<tr class=\"best\"><td>this model");
    for value in report.metrics.values() {
        let _ = write!(html, "<td class=\"n\">{value:.4}");
    }
    for baseline in &report.baselines {
        let _ = write!(
            html,
            "<tr><td title=\"{}\">{}",
            escape(&baseline.what),
            escape(&baseline.name)
        );
        for name in report.metrics.keys() {
            let _ = match baseline.metrics.get(name) {
                Some(value) => write!(html, "<td class=\"n\">{value:.4}"),
                None => write!(html, "<td>"),
            };
        }
    }
    html.push_str("</table><p class=\"dim\">");
    let told: Vec<String> = report
        .baselines
        .iter()
        .map(|b| format!("{}: {}", escape(&b.name), escape(&b.what)))
        .collect();
    let _ = write!(html, "{}.</p>", told.join("; "));
}

fn checks(html: &mut String, title: &str, checks: &[Check]) {
    let _ = write!(html, "<h2>{title}</h2>");
    if checks.is_empty() {
        html.push_str("<p class=\"dim\">none</p>");
        return;
    }
    html.push_str(
        "<table><tr><th>bound<th class=\"n\">asked for<th class=\"n\">measured<th class=\"n\">baseline<th>holds",
    );
    for check in checks {
        let baseline = check.baseline.map_or(String::new(), |b| format!("{b:.4}"));
        let (class, word) = if check.ok { ("ok", "yes") } else { ("bad", "no") };
        let _ = write!(
            html,
            "<tr><td>{}<td class=\"n\">{:.4}<td class=\"n\">{:.4}<td class=\"n\">{baseline}<td class=\"{class}\">{word}",
            escape(&check.name),
            check.wanted,
            check.value
        );
    }
    html.push_str("</table>");
}

fn curves(html: &mut String, report: &Report) {
    let of = |f: fn(&crate::train::Epoch) -> f64| report.history.iter().map(f).collect::<Vec<f64>>();
    let kept = report.lineage.training.best_epoch as usize;
    html.push_str("<h2>Learning curves</h2>");
    html.push_str(&lines(
        &[
            Line {
                name: "training loss",
                colour: "#2563eb",
                values: of(|e| e.train_loss),
            },
            Line {
                name: "validation loss",
                colour: "#d97706",
                values: of(|e| e.validation_loss),
            },
        ],
        kept,
    ));
    html.push_str(&lines(
        &[Line {
            name: &format!("{} on the validation rows", report.objective),
            colour: "#15803d",
            values: of(|e| e.objective),
        }],
        kept,
    ));
}

fn classes(html: &mut String, report: &Report) {
    if report.classes.is_empty() {
        return;
    }
    html.push_str(
        "<h2>Classes</h2><table><tr><th>label<th class=\"n\">precision<th class=\"n\">recall<th class=\"n\">F1\
         <th class=\"n\">test rows",
    );
    for (label, score) in &report.classes {
        let _ = write!(
            html,
            "<tr><td>{}<td class=\"n\">{:.4}<td class=\"n\">{:.4}<td class=\"n\">{:.4}<td class=\"n\">{}",
            escape(label),
            score.precision,
            score.recall,
            score.f1,
            score.support
        );
    }
    html.push_str("</table>");
    if let Some(confusion) = &report.confusion {
        html.push_str("<h2>Confusion matrix</h2><p class=\"dim\">rows: truth, columns: answer</p>");
        html.push_str(&matrix(&confusion.labels, &confusion.rows));
    }
}

fn cost(html: &mut String, report: &Report) {
    let cost = &report.cost;
    let of = match cost.peak_memory_of {
        MemoryOf::Child => "of a process that loads the version and answers",
        MemoryOf::Validate => "of the validating process, which holds the data set too",
    };
    let _ = write!(
        html,
        "<h2>Cost</h2><table><tr><td>files<td class=\"n\">{:.2} MB\
         <tr><td>latency of one sample, median / 95th percentile<td class=\"n\">{:.2} / {:.2} ms\
         <tr><td>peak memory {of}<td class=\"n\">{:.1} MB\
         <tr><td>self-test: tolerance / spread over {} sets of CPU kernels<td class=\"n\">{:.1e} / {:.1e}</table>",
        cost.bytes as f64 / 1e6,
        cost.p50_latency_ms,
        cost.p95_latency_ms,
        cost.peak_memory_bytes as f64 / 1e6,
        report.self_test.variants.len(),
        report.self_test.tolerance,
        report.self_test.spread
    );
}

fn data(html: &mut String, report: &Report) {
    let data = &report.data;
    html.push_str("<h2>Data checks</h2><table>");
    let mut row = |name: &str, count: usize, warn: bool| {
        let class = if warn && count > 0 { " bad" } else { "" };
        let _ = write!(html, "<tr><td>{}<td class=\"n{class}\">{count}", escape(name));
    };
    row("samples", data.samples, false);
    for (part, count) in &data.parts {
        row(&format!("rows in {part}"), *count, false);
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
    html.push_str("</table>");
    if !data.examples.is_empty() {
        html.push_str("<p class=\"dim\">for example: ");
        let told: Vec<String> = data.examples.iter().map(|e| escape(e)).collect();
        let _ = write!(html, "{}</p>", told.join("; "));
    }
    if !data.classes.is_empty() {
        html.push_str("<table><tr><th>label<th class=\"n\">train<th class=\"n\">validation<th class=\"n\">test");
        for (label, [train, validation, test]) in &data.classes {
            let _ = write!(
                html,
                "<tr><td>{}<td class=\"n\">{train}<td class=\"n\">{validation}<td class=\"n\">{test}",
                escape(label)
            );
        }
        html.push_str("</table>");
    }
}

fn lineage(html: &mut String, report: &Report) {
    let lineage = &report.lineage;
    let training = &lineage.training;
    html.push_str("<h2>Lineage</h2><table>");
    let mut row = |name: &str, value: String| {
        let _ = write!(html, "<tr><td>{name}<td><code>{}</code>", escape(&value));
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
    html.push_str("</table>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_become_markup() {
        assert_eq!(escape("<b a='1'>\"&"), "&lt;b a=&#39;1&#39;&gt;&quot;&amp;");
    }
}
