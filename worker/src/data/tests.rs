//! Data sets of every format, good and bad. Each bad one has its own reason and a message that says where.

mod texts;

use super::testing::{crc32, job, pictures, png, tar_of};
use super::*;
use crate::error::*;
use std::fmt::Write;

fn read(job: &Job, bytes: &[u8]) -> Result<DataSet> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    load(job, file.path(), &Tracker::new(false))
}

fn image_job(dataset: &str) -> Job {
    job(
        "Classification",
        "{image: {size: 8}}",
        &format!("{{uri: 'file:///d'{dataset}}}"),
        &"0".repeat(64),
        "",
    )
}

fn sensor_job(task: &str, input: &str, dataset: &str) -> Job {
    job(
        task,
        &format!("{{sensor: {input}}}"),
        &format!("{{uri: 'file:///d'{dataset}}}"),
        &"0".repeat(64),
        "",
    )
}

fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let list: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    tar_of(&list)
}

/// A table of 2 channels of 3 samples, 60 rows, two classes.
fn table(change: impl Fn(usize, &mut String)) -> String {
    let mut text = "label,user,a0,a1,a2,b0,b1,b2\n".to_owned();
    for i in 0..60 {
        let mut row = format!("{},u{}", ["on", "off"][i % 2], i % 20);
        for j in 0..6 {
            let _ = write!(row, ",{}", (i * 13 + j * 7 + i * i) % 97);
        }
        change(i, &mut row);
        let _ = writeln!(text, "{row}");
    }
    text
}

fn rows_job(more: &str) -> Job {
    sensor_job(
        "Classification",
        "{window: 3, channels: 2}",
        &format!(", columns: {{group: user}}{more}"),
    )
}

#[test]
fn class_folders_are_read_and_split_by_content() {
    let mut files = pictures(60);
    let small = read(&image_job(""), &tar(&files)).unwrap();
    assert_eq!(small.labels, ["blue", "red"]);
    assert_eq!(small.rows.len(), 120);
    files.push(("notes.txt".to_owned(), b"not a picture".to_vec()));
    files.extend(pictures(70).into_iter().skip(120));
    let large = read(&image_job(""), &tar(&files)).unwrap();
    assert_ne!(small.manifest, large.manifest);
    assert_eq!(large.checks.left_out["files that are no PNG or JPEG by name"], 1);
    for row in &small.rows {
        let same = large.rows.iter().find(|r| r.key == row.key).unwrap();
        assert_eq!(same.part, row.part, "{} moved when the data grew", row.key);
    }
}

#[test]
fn bad_pictures_have_their_reasons() {
    let bomb = {
        // A PNG header that says 60,000 x 60,000 pixels, with a right checksum.
        let mut bytes = png(8, 8, |_, _| [0; 3]);
        bytes[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        bytes[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        bytes
    };
    let good = pictures(60);
    let with = |name: &str, bytes: Vec<u8>| {
        let mut files = good.clone();
        files.push((name.to_owned(), bytes));
        tar(&files)
    };
    let error = |bytes: &[u8], dataset: &str| read(&image_job(dataset), bytes).unwrap_err();
    let unreadable = error(&with("red/broken.png", b"not a picture".to_vec()), "");
    assert_eq!(unreadable.reason(), UNREADABLE_SAMPLES);
    assert!(unreadable.message().contains("red/broken.png"), "{unreadable}");
    let cut = {
        let whole = png(64, 64, |x, y| [x as u8, y as u8, 7]);
        whole[..whole.len() / 2].to_vec()
    };
    assert_eq!(
        error(&with("red/cut.png", cut.clone()), "").reason(),
        UNREADABLE_SAMPLES
    );
    let allowed = read(
        &image_job(", requirements: {maxBadFraction: '0.05'}"),
        &with("red/cut.png", cut),
    )
    .unwrap();
    assert_eq!((allowed.checks.unreadable, allowed.rows.len()), (1, 120));
    let bomb = error(&with("red/bomb.png", bomb), ", requirements: {maxBadFraction: '0.5'}");
    assert_eq!(bomb.reason(), DECOMPRESSION_BOMB);
    assert!(bomb.message().contains("red/bomb.png"), "{bomb}");
    let red: Vec<_> = good.iter().filter(|(n, _)| n.starts_with("red")).cloned().collect();
    assert_eq!(error(&tar(&red), "").reason(), ONE_CLASS);
    assert_eq!(error(&tar(&good[..6]), "").reason(), TOO_FEW_SAMPLES);
    assert_eq!(
        error(&tar(&[("a/readme.txt".to_owned(), vec![1])]), "").reason(),
        DATA_EMPTY
    );
    assert_eq!(error(b"", "").reason(), DATA_EMPTY);
    assert_eq!(
        error(&tar(&good), ", requirements: {maxBytes: '1k'}").reason(),
        DATA_TOO_LARGE
    );
}

#[test]
fn copies_and_near_copies_across_parts_are_counted() {
    let mut files = pictures(60);
    let manifest = |files: &mut Vec<(String, Vec<u8>)>| {
        let mut text = "path,label,split\n".to_owned();
        for (i, (name, _)) in files.iter().enumerate() {
            let split = ["train", "train", "validation", "test"][i / 2 % 4];
            let _ = writeln!(text, "{name},{},{split}", name.split('/').next().unwrap());
        }
        let _ = writeln!(
            text,
            "red/copy.png,red,test\nblue/near.png,blue,test\nblue/odd.png,blue,train"
        );
        files.push(("manifest.csv".to_owned(), text.into_bytes()));
    };
    manifest(&mut files);
    let first = files[0].1.clone();
    files.push(("red/copy.png".to_owned(), first.clone()));
    files.push(("blue/odd.png".to_owned(), first));
    // The same picture as blue/0.png, brighter by one step.
    let noise = |x: u32, y: u32| ((x * 31 + y * 17) % 61) as u8;
    files.push((
        "blue/near.png".to_owned(),
        png(12, 10, |x, y| [41, noise(x, y) + 1, 181 + noise(y, x)]),
    ));
    let job = image_job(", format: Manifest, columns: {split: split}, split: {by: Column}");
    let data = read(&job, &tar(&files)).unwrap();
    let checks = &data.checks;
    assert_eq!(checks.duplicates, 2);
    assert_eq!(checks.duplicates_across_parts, 1, "{:?}", checks.examples);
    assert_eq!(checks.conflicting_labels, 2);
    assert!(checks.near_duplicates_across_parts >= 1, "{:?}", checks.examples);
    assert!(
        checks.examples.iter().any(|e| e.contains("blue/near.png")),
        "{:?}",
        checks.examples
    );
    let absent = image_job(", format: Manifest, columns: {label: kind}");
    assert_eq!(read(&absent, &tar(&files)).unwrap_err().reason(), COLUMN_ABSENT);
    files.retain(|(name, _)| name != "red/1.png");
    let gone = read(&job, &tar(&files)).unwrap_err();
    assert_eq!(gone.reason(), UNREADABLE_SAMPLES);
    assert!(gone.message().contains("red/1.png"), "{gone}");
    files.retain(|(name, _)| name != "manifest.csv");
    assert_eq!(read(&job, &tar(&files)).unwrap_err().reason(), DATA_FORMAT);
}

#[test]
fn rows_are_read_channel_after_channel_and_split_by_group() {
    let data = read(&rows_job(""), table(|_, _| {}).as_bytes()).unwrap();
    assert_eq!(data.labels, ["off", "on"]);
    let Content::Window(values) = &data.rows[0].content else {
        panic!()
    };
    assert_eq!(values, &[0.0, 7.0, 14.0, 21.0, 28.0, 35.0]);
    for row in &data.rows {
        let number: usize = row.key.strip_prefix("row ").unwrap().parse().unwrap();
        let same_user = data.rows.iter().filter(|r| {
            let other: usize = r.key.strip_prefix("row ").unwrap().parse().unwrap();
            (other - 1) % 20 == (number - 1) % 20
        });
        assert!(same_user.into_iter().all(|r| r.part == row.part), "a user in two parts");
    }
}

#[test]
#[allow(clippy::too_many_lines)] // One table.
fn bad_tables_have_their_reasons() {
    let error = |text: &str| read(&rows_job(""), text.as_bytes()).unwrap_err();
    for (what, text, reason, word) in [
        (
            "a cell too many",
            table(|i, row| {
                if i == 7 {
                    row.push_str(",1");
                }
            }),
            DATA_FORMAT,
            "",
        ),
        (
            "a missing value",
            table(|i, row| {
                if i == 7 {
                    let end = row.rfind(',').unwrap();
                    row.replace_range(end + 1.., "");
                }
            }),
            MISSING_VALUES,
            "row 8",
        ),
        (
            "NaN",
            table(|i, row| {
                if i == 7 {
                    let end = row.rfind(',').unwrap();
                    row.replace_range(end + 1.., "NaN");
                }
            }),
            MISSING_VALUES,
            "\"b2\"",
        ),
        (
            "no label",
            table(|i, row| {
                if i == 7 {
                    *row = row.replacen("off", "", 1);
                }
            }),
            MISSING_VALUES,
            "no label",
        ),
        (
            "one class",
            table(|_, row| *row = row.replacen("off", "on", 1)),
            ONE_CLASS,
            "\"on\"",
        ),
        (
            "label column absent",
            table(|_, _| {}).replacen("label", "kind", 1),
            COLUMN_ABSENT,
            "\"label\"",
        ),
        (
            "group column absent",
            table(|_, _| {}).replacen("user", "person", 1),
            COLUMN_ABSENT,
            "\"user\"",
        ),
        (
            "a column too many",
            table(|_, _| {}).replace('\n', ",1\n").replacen("b2,1", "b2,b3", 1),
            INPUT_SHAPE,
            "7 value columns",
        ),
        (
            "a header alone",
            "label,user,a0,a1,a2,b0,b1,b2\n".to_owned(),
            DATA_EMPTY,
            "",
        ),
        ("nothing", String::new(), DATA_EMPTY, ""),
        (
            "too few rows",
            table(|_, _| {})
                .lines()
                .take(9)
                .fold(String::new(), |t, l| t + l + "\n"),
            TOO_FEW_SAMPLES,
            "",
        ),
    ] {
        let error = error(&text);
        assert_eq!(error.reason(), reason, "{what}: {error}");
        assert!(error.message().contains(word), "{what}: {error}");
    }
    let some = table(|i, row| {
        if i == 7 {
            let end = row.rfind(',').unwrap();
            row.replace_range(end + 1.., "");
        }
    });
    let data = read(&rows_job(", requirements: {maxBadFraction: '0.1'}"), some.as_bytes()).unwrap();
    assert_eq!((data.checks.missing_values, data.rows.len()), (1, 59));
    let job = sensor_job("Regression", "{window: 3, channels: 2}", ", columns: {group: user}");
    assert_eq!(
        read(&job, table(|_, _| {}).as_bytes()).unwrap_err().reason(),
        DATA_FORMAT,
        "a target that is text"
    );
}

/// Three machines, one channel, 1,800 samples each; the label changes every 300.
fn series() -> String {
    let mut text = "machine,t,v,label\n".to_owned();
    for machine in ["a", "b", "c"] {
        for t in 0..1800 {
            let _ = writeln!(
                text,
                "{machine},{t},{},{}",
                (t * 37 + t * t) % 101,
                ["calm", "busy"][t / 300 % 2]
            );
        }
    }
    text
}

fn series_job(split: &str) -> Job {
    sensor_job(
        "Classification",
        "{window: 10, stride: 5}",
        &format!(
            ", format: Series, columns: {{group: machine, time: t, split: null}}, split: {split}, requirements: {{minPerClass: 1}}"
        ),
    )
}

#[test]
fn series_are_split_first_and_windowed_after_with_a_gap() {
    let start_of = |row: &Row| -> (String, usize) {
        let (group, at) = row.key.split_once('@').unwrap();
        (group.to_owned(), at.parse().unwrap())
    };
    for split in ["{by: Time}", "{by: Random, seed: 5}"] {
        let data = read(&series_job(split), series().as_bytes()).unwrap();
        assert!(data.checks.left_out["windows in a gap between parts"] > 0, "{split}");
        for a in &data.rows {
            for b in data.rows.iter().filter(|b| b.part != a.part) {
                let ((group_a, at_a), (group_b, at_b)) = (start_of(a), start_of(b));
                assert!(
                    group_a != group_b || at_a.abs_diff(at_b) >= 20,
                    "{split}: {} and {}",
                    a.key,
                    b.key
                );
            }
        }
    }
    let data = read(&series_job("{by: Time}"), series().as_bytes()).unwrap();
    assert!(
        data.rows.iter().all(|r| start_of(r).1 < 1260 || r.part != Part::Train),
        "the earliest share trains"
    );
    assert!(
        data.checks.left_out["windows without one label"] > 0,
        "the change of labels is in no window"
    );
    let shuffled: String = {
        let text = series();
        let mut lines: Vec<&str> = text.lines().collect();
        lines[1..].sort_by_key(|l| l.len() * 31 + l.bytes().map(usize::from).sum::<usize>());
        lines.join("\n")
    };
    let again = read(&series_job("{by: Time}"), shuffled.as_bytes()).unwrap();
    let keys = |d: &DataSet| d.rows.iter().map(|r| r.key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&again), keys(&data), "the order of the file does not matter");
}

#[test]
fn no_window_spans_a_hole_or_a_missing_value() {
    let text = series();
    let left: Vec<&str> = text
        .lines()
        .filter(|l| !l.starts_with("a,10") || l.starts_with("a,10,"))
        .collect();
    let holed = left.join("\n");
    let data = read(&series_job("{by: Time}"), holed.as_bytes()).unwrap();
    assert!(data.checks.left_out["windows over a hole in time"] > 0);
    let missing = text.replacen("b,50,", "b,50,x", 1);
    let error = read(&series_job("{by: Time}"), missing.as_bytes()).unwrap_err();
    assert_eq!(error.reason(), MISSING_VALUES);
    assert!(error.message().contains("b@"), "{error}");
    let bad_time = text.replacen("b,50,", "b,noon,", 1);
    assert_eq!(
        read(&series_job("{by: Time}"), bad_time.as_bytes())
            .unwrap_err()
            .reason(),
        DATA_FORMAT
    );
}

/// The CSV table as Parquet: text, doubles and floats.
fn parquet(csv: &str) -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, FloatType};
    use parquet::file::writer::SerializedFileWriter;
    let mut lines = csv.lines();
    let names: Vec<&str> = lines.next().unwrap().split(',').collect();
    let rows: Vec<Vec<&str>> = lines.map(|l| l.split(',').collect()).collect();
    let mut schema = "message table {".to_owned();
    for (i, name) in names.iter().enumerate() {
        let kind = ["BYTE_ARRAY", "FLOAT", "DOUBLE"][if i < 2 { 0 } else { 1 + i % 2 }];
        let text = if i < 2 { " (UTF8)" } else { "" };
        let _ = write!(schema, "required {kind} {name}{text};");
    }
    schema.push('}');
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(&schema).unwrap());
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, std::sync::Arc::default()).unwrap();
    let mut group = file.next_row_group().unwrap();
    for i in 0..names.len() {
        let mut column = group.next_column().unwrap().unwrap();
        let cells = rows.iter().map(|r| r[i]);
        if i < 2 {
            let values: Vec<ByteArray> = cells.map(ByteArray::from).collect();
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, None, None)
                .unwrap();
        } else if i % 2 == 0 {
            let values: Vec<f32> = cells.map(|c| c.parse().unwrap()).collect();
            column.typed::<FloatType>().write_batch(&values, None, None).unwrap();
        } else {
            let values: Vec<f64> = cells.map(|c| c.parse().unwrap()).collect();
            column.typed::<DoubleType>().write_batch(&values, None, None).unwrap();
        }
        column.close().unwrap();
    }
    group.close().unwrap();
    file.close().unwrap();
    bytes
}

#[test]
fn parquet_and_csv_give_the_same_rows() {
    let csv = table(|_, _| {});
    let bytes = parquet(&csv);
    let (one, two) = (
        read(&rows_job(""), csv.as_bytes()).unwrap(),
        read(&rows_job(""), &bytes).unwrap(),
    );
    let seen = |d: &DataSet| format!("{:?}", d.rows);
    assert_eq!(seen(&one), seen(&two));
    let cut = read(&rows_job(""), &bytes[..bytes.len() / 2]).unwrap_err();
    assert_eq!(cut.reason(), DATA_FORMAT);
    let nan = parquet(&csv.replacen(",35\n", ",NaN\n", 1));
    assert_eq!(read(&rows_job(""), &nan).unwrap_err().reason(), MISSING_VALUES);
}
