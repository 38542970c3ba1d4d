//! Tables of texts, good and bad.

use super::*;

fn text_job(dataset: &str) -> Job {
    let input = format!(
        "{{text: {{tokenizer: {{uri: 'file:///t', sha256: '{}'}}}}}}",
        "0".repeat(64)
    );
    job(
        "Classification",
        &input,
        &format!("{{uri: 'file:///d'{dataset}}}"),
        &"0".repeat(64),
        "",
    )
}

/// Sixty texts of two classes, as CSV and as JSON lines.
fn texts() -> (String, String) {
    let (mut csv, mut lines) = ("text,label,who\n".to_owned(), String::new());
    for i in 0..60 {
        let (what, label) = [("lamp", "light"), ("song", "music")][i % 2];
        let _ = writeln!(csv, "\"the \"\"{what}\"\", number {i}\",{label},w{}", i % 20);
        let _ = writeln!(
            lines,
            r#"{{"label": "{label}", "who": "w{}", "text": "the \"{what}\", number {i}"}}"#,
            i % 20
        );
    }
    (csv, lines)
}

#[test]
fn texts_are_read_from_csv_and_json_lines() {
    let (csv, lines) = texts();
    let job = text_job(", columns: {group: who}");
    let (one, two) = (
        read(&job, csv.as_bytes()).unwrap(),
        read(&job, lines.as_bytes()).unwrap(),
    );
    assert_eq!(one.labels, ["light", "music"]);
    let Content::Text(text) = &one.rows[3].content else {
        panic!()
    };
    assert_eq!(text, "the \"song\", number 3");
    assert_eq!(format!("{:?}", one.rows), format!("{:?}", two.rows));
    assert_ne!(one.manifest, two.manifest, "the files differ");
}

#[test]
fn bad_texts_have_their_reasons() {
    let (csv, _) = texts();
    for (what, text, reason, word) in [
        (
            "an empty text",
            csv.replacen("\"the \"\"song\"\", number 7\"", "", 1),
            MISSING_VALUES,
            "row 8: no text",
        ),
        (
            "spaces",
            csv.replacen("\"the \"\"song\"\", number 7\"", " \t ", 1),
            MISSING_VALUES,
            "row 8: no text",
        ),
        (
            "no label",
            csv.replacen("7\",music", "7\",", 1),
            MISSING_VALUES,
            "row 8: no label",
        ),
        (
            "label column absent",
            csv.replacen("label", "kind", 1),
            COLUMN_ABSENT,
            "spec.dataset.columns.label",
        ),
        (
            "text column absent",
            csv.replacen("text", "words", 1),
            COLUMN_ABSENT,
            "spec.dataset.columns.text",
        ),
        ("one class", csv.replace("music", "light"), ONE_CLASS, "light"),
        (
            "a book",
            csv.replacen("number 7", &"x".repeat(crate::pipeline::MAX_TEXT_BYTES), 1),
            UNREADABLE_SAMPLES,
            "row 8",
        ),
        ("a header alone", "text,label\n".to_owned(), DATA_EMPTY, ""),
    ] {
        let error = read(&text_job(""), text.as_bytes()).unwrap_err();
        assert_eq!(error.reason(), reason, "{what}: {error}");
        assert!(error.message().contains(word), "{what}: {error}");
    }
    let mut bytes = csv.clone().into_bytes();
    let at = csv.find("number 7").unwrap();
    bytes[at] = 0xff;
    let error = read(&text_job(""), &bytes).unwrap_err();
    assert_eq!(error.reason(), DATA_FORMAT, "not UTF-8: {error}");
    assert!(error.message().contains("record 8"), "{error}");
    let named = text_job(", columns: {text: words}");
    assert_eq!(
        read(&named, csv.replacen("text", "words", 1).as_bytes())
            .unwrap()
            .rows
            .len(),
        60
    );
}

#[test]
fn texts_that_differ_in_case_and_punctuation_are_near_copies() {
    let (mut csv, _) = texts();
    csv = csv.replacen("text,label,who", "text,label,part", 1);
    for (i, part) in ["train", "train", "test", "validation"]
        .iter()
        .cycle()
        .take(20)
        .enumerate()
    {
        csv = csv.replace(&format!(",w{i}\n"), &format!(",{part}\n"));
    }
    csv += "\"The LAMP... number 0!\",light,test\n\"the \"\"lamp\"\", number 0\",light,test\nlamp the number 0,light,test\n";
    let data = read(
        &text_job(", columns: {split: part}, split: {by: Column}"),
        csv.as_bytes(),
    )
    .unwrap();
    assert_eq!(
        data.checks.near_duplicates_across_parts, 1,
        "{:?}",
        data.checks.examples
    );
    assert_eq!(data.checks.duplicates_across_parts, 1, "{:?}", data.checks.examples);
}
