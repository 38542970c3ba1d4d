//! Jobs that cannot be done: each ends as bad input with a reason of its own and a message that says what, where and what
//! to do, and leaves nothing half-done.

use super::tests::files;
use super::*;
use crate::data::testing::{pictures, png, tar_of};
use crate::engine::pb::ModelProto;
use crate::engine::testing::{encoded, picture_model, window_model};
use crate::error::*;
use prost::Message;
use std::fmt::Write;

/// A job, and what its error must say.
struct Case {
    what: &'static str,
    task: &'static str,
    reason: &'static str,
    /// Where, what, and what to do.
    words: &'static [&'static str],
    input: &'static str,
    dataset: &'static str,
    /// In place of the rest of `baseModel`.
    model: Vec<u8>,
    /// In place of the model's own hash.
    sha256: Option<String>,
    features: &'static str,
    data: Option<Vec<u8>>,
}

impl Case {
    /// A job on pictures that would succeed.
    fn new(what: &'static str, reason: &'static str, words: &'static [&'static str]) -> Self {
        Self {
            what,
            task: "Classification",
            reason,
            words,
            input: "{image: {size: 16}}",
            dataset: "",
            model: encoded(&picture_model()).0,
            sha256: None,
            features: "",
            data: Some(tar(&pictures(60))),
        }
    }

    fn data(what: &'static str, reason: &'static str, words: &'static [&'static str], data: Vec<u8>) -> Self {
        Self {
            data: Some(data),
            ..Self::new(what, reason, words)
        }
    }

    /// The same on a table of windows.
    fn table(what: &'static str, reason: &'static str, words: &'static [&'static str], table: String) -> Self {
        Self {
            input: "{sensor: {window: 8, channels: 2}}",
            model: encoded(&window_model()).0,
            ..Self::data(what, reason, words, table.into_bytes())
        }
    }

    fn model(what: &'static str, reason: &'static str, words: &'static [&'static str], model: Vec<u8>) -> Self {
        Self {
            model,
            ..Self::new(what, reason, words)
        }
    }

    async fn run(self) {
        let made = files(
            self.task,
            self.input,
            self.dataset,
            &picture_model(),
            self.data.as_deref().unwrap_or_default(),
            "",
        );
        let folder = made.folder.path();
        let mut job = made.job;
        std::fs::write(folder.join("model.onnx"), &self.model).unwrap();
        let own = Digest::of(&self.model);
        job.spec.base_model.sha256 = self.sha256.unwrap_or_else(|| own.hex().to_owned());
        job.spec.base_model.features = (!self.features.is_empty()).then(|| self.features.to_owned());
        if self.data.is_none() {
            std::fs::remove_file(folder.join("data")).unwrap();
        }
        let out = folder.join("out");
        let error = run(job, &out, None, Tracker::new(false)).await.unwrap_err();
        assert_eq!(
            (error.class(), error.reason()),
            (Class::BadInput, self.reason),
            "{}: {error}",
            self.what
        );
        for word in self.words {
            assert!(error.message().contains(word), "{}: {error} lacks {word:?}", self.what);
        }
        let left: Vec<_> = std::fs::read_dir(&out).unwrap().collect();
        assert!(left.is_empty(), "{} leaves {left:?}", self.what);
    }
}

fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let list: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    tar_of(&list)
}

/// The pictures that would do, and one more.
fn and(name: &str, bytes: Vec<u8>) -> Vec<u8> {
    let mut files = pictures(60);
    files.push((name.to_owned(), bytes));
    tar(&files)
}

/// A table of 80 rows that would do.
fn table() -> String {
    let mut text = "label".to_owned();
    for i in 0..16 {
        let _ = write!(text, ",v{i}");
    }
    for row in 0..80u32 {
        text.push_str(["\nup", "\ndown"][row as usize % 2]);
        for i in 0..16 {
            let _ = write!(text, ",{}", (row * 37 + i * 11 + row * row) % 97);
        }
    }
    text
}

/// A table of 80 rows of a Regression, the fifth with this target, and of three parts by a column.
fn targets(fifth: &str) -> String {
    let mut lines = table().lines().map(str::to_owned).collect::<Vec<String>>();
    for (row, line) in lines.iter_mut().enumerate().skip(1) {
        let (_, values) = line.split_once(',').unwrap();
        let target = if row == 5 { fifth.to_owned() } else { row.to_string() };
        *line = format!("{target},{values}");
    }
    lines.join("\n")
}

/// The table with a column for the part of a row, and a class that the test rows alone have.
fn unseen() -> String {
    let mut lines = table().lines().map(str::to_owned).collect::<Vec<String>>();
    lines[0].push_str(",split");
    for (row, line) in lines.iter_mut().enumerate().skip(1) {
        let part = ["train", "train", "validation", "test"][row % 4];
        if part == "test" && row > 70 {
            *line = format!("sideways,{}", line.split_once(',').unwrap().1);
        }
        *line = format!("{line},{part}");
    }
    lines.join("\n")
}

/// More labels than are taken, each on one row.
fn labels() -> String {
    let mut text = "label".to_owned();
    for i in 0..16 {
        let _ = write!(text, ",v{i}");
    }
    for row in 0..10_001 {
        let _ = write!(text, "\nlabel {row}{}", ",0.5".repeat(16));
    }
    text
}

/// An archive whose only entry has this name, which no builder of archives would write.
fn named(name: &str) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(0);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend([0; 1024]);
    bytes
}

#[tokio::test]
async fn bad_data_ends_a_job_with_its_own_reason() {
    let whole = png(64, 64, |x, y| [x as u8, y as u8, 7]);
    let red: Vec<_> = pictures(60).into_iter().filter(|(n, _)| n.starts_with("red")).collect();
    // A header that says 60,000 x 60,000 pixels; decoders look at sizes before checksums.
    let mut bomb = png(8, 8, |_, _| [0; 3]);
    bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let crc = crate::data::testing::crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    let missing = Case {
        data: None,
        ..Case::new(
            "missing",
            NOT_FOUND,
            &["spec.dataset.uri", "does not exist", "check the address"],
        )
    };
    let large = Case {
        dataset: ", requirements: {maxBytes: '1k'}",
        ..Case::new("too large", DATA_TOO_LARGE, &["spec.dataset", "1000 bytes", "raise"])
    };
    for case in [
        missing,
        large,
        Case::data(
            "empty",
            DATA_EMPTY,
            &["spec.dataset", "empty file", "again"],
            Vec::new(),
        ),
        Case::data(
            "no entries",
            DATA_EMPTY,
            &["spec.dataset", "no files", "put"],
            vec![0; 1024],
        ),
        Case::data(
            "no archive",
            DATA_FORMAT,
            &["spec.dataset", "tar", "write"],
            b"hello".to_vec(),
        ),
        Case::data("one class", ONE_CLASS, &["spec.dataset", "\"red\"", "add"], tar(&red)),
        Case::data(
            "unreadable",
            UNREADABLE_SAMPLES,
            &["spec.dataset", "red/x.png", "Repair or remove"],
            and("red/x.png", whole[..whole.len() / 2].to_vec()),
        ),
        Case::data(
            "too few",
            TOO_FEW_SAMPLES,
            &["spec.dataset", "training rows", "minPerClass"],
            tar(&pictures(3)),
        ),
        Case::data(
            "../",
            UNSAFE_PATH,
            &["spec.dataset", "../x.png", "without .."],
            named("../x.png"),
        ),
        Case::data(
            "a bomb",
            DECOMPRESSION_BOMB,
            &["spec.dataset", "red/bomb.png", "8192"],
            and("red/bomb.png", bomb),
        ),
        Case::table(
            "label column absent",
            COLUMN_ABSENT,
            &["spec.dataset.columns.label", "\"label\"", "v0, v1"],
            table().replacen("label", "kind", 1),
        ),
        Case::table(
            "NaN",
            MISSING_VALUES,
            &["spec.dataset", "row 2", "NaN", "maxBadFraction"],
            table().replacen("\ndown,38,", "\ndown,NaN,", 1),
        ),
        Case::table(
            "a column too few",
            INPUT_SHAPE,
            &["15 value columns", "input.sensor", "name the columns"],
            table()
                .replacen(",v15", "", 1)
                .lines()
                .enumerate()
                .fold(String::new(), |text, (i, line)| {
                    let line = if i == 0 { line } else { line.rsplit_once(',').unwrap().0 };
                    text + line + "\n"
                }),
        ),
    ] {
        case.run().await;
    }
}

#[tokio::test]
async fn bad_labels_end_a_job_with_their_own_reason() {
    for case in [
        Case {
            dataset: ", split: {by: Column}, columns: {split: split}",
            ..Case::table(
                "a class in the test rows alone",
                TOO_FEW_SAMPLES,
                &["spec.dataset", "\"sideways\"", "0 training rows", "minPerClass"],
                unseen(),
            )
        },
        Case::table(
            "more labels than a model may have",
            DATA_FORMAT,
            &["spec.dataset", "10001 different labels", "Regression"],
            labels(),
        ),
        Case {
            task: "Regression",
            ..Case::table(
                "a target out of range",
                DATA_FORMAT,
                &["spec.dataset", "row 5", "1e300", "out of range", "unit"],
                targets("1e300"),
            )
        },
        Case {
            task: "Regression",
            ..Case::table(
                "a target that is no number",
                DATA_FORMAT,
                &["spec.dataset", "row 5", "\"NaN\"", "not a finite number"],
                targets("NaN"),
            )
        },
    ] {
        case.run().await;
    }
}

#[tokio::test]
async fn a_bad_base_model_ends_a_job_with_its_own_reason() {
    let good = encoded(&picture_model()).0;
    let strange = |change: &dyn Fn(&mut ModelProto)| {
        let mut model = picture_model();
        change(&mut model);
        model.encode_to_vec()
    };
    let nan = strange(&|model| {
        let weights = &mut model.graph.as_mut().unwrap().initializer[0].raw_data;
        weights[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let outside = strange(&|model| {
        let weights = &mut model.graph.as_mut().unwrap().initializer[0];
        let entry = |key: &str, value: &str| crate::engine::pb::StringStringEntryProto {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        weights.external_data = vec![entry("location", "weights.bin"), entry("length", "288")];
        weights.data_location = Some(1);
        weights.raw_data.clear();
    });
    let short = strange(&|model| model.graph.as_mut().unwrap().initializer[0].raw_data.truncate(280));
    let operator = strange(&|model| model.graph.as_mut().unwrap().node[1].op_type = "Fancy".to_owned());
    let features = Case {
        features: "embedding",
        ..Case::new(
            "no such features",
            FEATURES_NOT_FOUND,
            &["spec.baseModel.features", "\"embedding\"", "flat [1, 24]"],
        )
    };
    let mismatch = Case {
        sha256: Some("0".repeat(64)),
        ..Case::new(
            "another file",
            MODEL_MISMATCH,
            &["spec.baseModel", "sha256", "name the right"],
        )
    };
    for case in [
        features,
        mismatch,
        Case::model(
            "text",
            NOT_ONNX,
            &["spec.baseModel", "not an ONNX", "again"],
            b"hello".to_vec(),
        ),
        Case::model(
            "cut short",
            NOT_ONNX,
            &["spec.baseModel", "cut short", "again"],
            good[..good.len() / 2].to_vec(),
        ),
        Case::model(
            "NaN in weights",
            NOT_FINITE,
            &["spec.baseModel", "\"conv/w\"", "NaN", "anew"],
            nan,
        ),
        Case::model(
            "weights in another file",
            EXTERNAL_DATA,
            &["spec.baseModel", "\"conv/w\"", "\"weights.bin\"", "one file"],
            outside,
        ),
        Case::model(
            "weights that are short",
            NOT_ONNX,
            &["spec.baseModel", "\"conv/w\"", "288 bytes", "has 280"],
            short,
        ),
        Case::model(
            "an operator that is not known",
            UNSUPPORTED_OPERATOR,
            &["spec.baseModel", "Fancy", "\"relu\"", "export the model without it"],
            operator,
        ),
        Case::model(
            "another input",
            INPUT_SHAPE,
            &["spec.baseModel", "[?, 2, 8]", "change spec.input"],
            encoded(&window_model()).0,
        ),
    ] {
        case.run().await;
    }
}
