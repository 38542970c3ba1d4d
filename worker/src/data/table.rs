//! Tables: CSV with a header, JSON lines, or Parquet by its record reader, all given row by row as text. Which column plays which
//! role is found here by name.

use super::files::FileRef;
use super::jsonl::Lines;
use crate::error::{COLUMN_ABSENT, DATA_FORMAT, DECOMPRESSION_BOMB, Result, WorkerError};
use fleetune_crds::Columns;
use k8s_openapi::jiff::Timestamp;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Most columns of a table.
const MAX_COLUMNS: usize = 1 << 20;
/// Most bytes that a Parquet file may unpack to, over its own size.
const MAX_PARQUET_RATIO: u64 = 100;

/// A table that can be read once.
pub struct Table {
    columns: Vec<String>,
    kind: Kind,
}

enum Kind {
    Csv(Box<csv::Reader<BufReader<std::io::Take<File>>>>),
    Parquet(Box<SerializedFileReader<File>>),
    Lines(Lines),
}

impl Table {
    /// Opens the table that lies at `at`.
    pub fn open(at: &FileRef) -> Result<Self> {
        let io = |e: std::io::Error| WorkerError::io("reading", &at.path, &e);
        let mut file = File::open(&at.path).map_err(io)?;
        file.seek(SeekFrom::Start(at.offset)).map_err(io)?;
        Self::csv(file.take(at.size))
    }

    /// Opens the table in the file at `path`: Parquet and JSON lines by their first bytes, else CSV.
    pub fn open_path(path: &Path) -> Result<Self> {
        let io = |e: std::io::Error| WorkerError::io("reading", path, &e);
        let mut file = File::open(path).map_err(io)?;
        let mut magic = [0; 4];
        let n = file.read(&mut magic).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        if n == 4 && &magic == b"PAR1" {
            return Self::parquet(file);
        }
        if n >= 2 && magic[..2] == [0x1f, 0x8b] {
            return Err(WorkerError::bad(
                DATA_FORMAT,
                "the table is compressed with gzip: unpack it first",
            ));
        }
        if magic[..n].trim_ascii_start().first() == Some(&b'{') {
            let (lines, columns) = Lines::open(file)?;
            return Self::named(columns, Kind::Lines(lines));
        }
        Self::csv(file.take(u64::MAX))
    }

    fn csv(file: std::io::Take<File>) -> Result<Self> {
        let mut reader = csv::ReaderBuilder::new().from_reader(BufReader::with_capacity(1 << 16, file));
        let header = reader.headers().map_err(|e| broken(&e))?;
        if header.len() > MAX_COLUMNS {
            return Err(WorkerError::bad(
                DATA_FORMAT,
                format!("{} columns, at most {MAX_COLUMNS}", header.len()),
            ));
        }
        // Spreadsheets write a byte order mark in front of the first name.
        let columns = header
            .iter()
            .map(|c| c.trim_start_matches('\u{feff}').trim().to_owned())
            .collect();
        Self::named(columns, Kind::Csv(Box::new(reader)))
    }

    fn parquet(file: File) -> Result<Self> {
        let length = file.metadata().map_or(0, |m| m.len());
        let reader = SerializedFileReader::new(file)
            .map_err(|e| WorkerError::bad(DATA_FORMAT, format!("not a readable Parquet file: {e}")))?;
        let meta = reader.metadata();
        let unpacked: u64 = meta
            .row_groups()
            .iter()
            .map(|g| u64::try_from(g.total_byte_size()).unwrap_or(u64::MAX))
            .fold(0, u64::saturating_add);
        if unpacked / MAX_PARQUET_RATIO > length {
            return Err(WorkerError::bad(
                DECOMPRESSION_BOMB,
                format!("the Parquet file has {length} bytes and says that it unpacks to {unpacked}"),
            ));
        }
        let schema = meta.file_metadata().schema_descr();
        if schema
            .columns()
            .iter()
            .any(|c| c.max_rep_level() > 0 || c.path().parts().len() > 1)
        {
            return Err(WorkerError::bad(
                DATA_FORMAT,
                "the Parquet file has lists or nested columns: write one plain column a value",
            ));
        }
        let columns = schema.columns().iter().map(|c| c.name().to_owned()).collect();
        Self::named(columns, Kind::Parquet(Box::new(reader)))
    }

    fn named(columns: Vec<String>, kind: Kind) -> Result<Self> {
        let mut seen = std::collections::HashSet::new();
        if let Some(twice) = columns.iter().find(|c| !seen.insert(c.as_str())) {
            return Err(WorkerError::bad(
                DATA_FORMAT,
                format!("the table has the column {twice:?} twice"),
            ));
        }
        if columns.iter().all(String::is_empty) {
            return Err(WorkerError::bad(
                crate::error::DATA_EMPTY,
                "the table is empty: write a header and rows",
            ));
        }
        Ok(Self { columns, kind })
    }

    /// The names of the columns, in order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Calls `each` with the number of every row (the first is 1) and its cells.
    pub fn for_each(self, mut each: impl FnMut(u64, &[&str]) -> Result<()>) -> Result<()> {
        let width = self.columns.len();
        match self.kind {
            Kind::Lines(lines) => lines.for_each(&self.columns, each)?,
            Kind::Csv(mut reader) => {
                let mut record = csv::StringRecord::new();
                let mut number = 0;
                while reader.read_record(&mut record).map_err(|e| broken(&e))? {
                    number += 1;
                    let cells: Vec<&str> = record.iter().collect();
                    each(number, &cells)?;
                }
            }
            Kind::Parquet(reader) => {
                let bad = |e: parquet::errors::ParquetError| {
                    WorkerError::bad(DATA_FORMAT, format!("the Parquet file breaks off: {e}"))
                };
                for (number, row) in (1..).zip(reader.get_row_iter(None).map_err(bad)?) {
                    let row = row.map_err(bad)?;
                    let texts: Vec<String> = row.get_column_iter().map(|(_, field)| text(field)).collect();
                    if texts.len() != width {
                        return Err(WorkerError::bad(
                            DATA_FORMAT,
                            format!("row {number} has {} cells", texts.len()),
                        ));
                    }
                    let cells: Vec<&str> = texts.iter().map(String::as_str).collect();
                    each(number, &cells)?;
                }
            }
        }
        Ok(())
    }
}

fn broken(error: &csv::Error) -> WorkerError {
    WorkerError::bad(DATA_FORMAT, format!("not a readable CSV table with a header: {error}"))
}

fn text(field: &Field) -> String {
    match field {
        Field::Null => String::new(),
        Field::Str(text) => text.clone(),
        // Seconds, like every other time.
        Field::TimestampMillis(t) => (*t as f64 / 1e3).to_string(),
        Field::TimestampMicros(t) => (*t as f64 / 1e6).to_string(),
        Field::Float(v) => v.to_string(),
        Field::Double(v) => v.to_string(),
        other => other.to_string(),
    }
}

/// Where the columns with a role are.
#[derive(Clone, Debug, PartialEq)]
pub struct Roles {
    /// The label.
    pub label: usize,
    /// The group.
    pub group: Option<usize>,
    /// The time.
    pub time: Option<usize>,
    /// The split.
    pub split: Option<usize>,
    /// The values, in order.
    pub values: Vec<usize>,
}

impl Roles {
    /// Finds the columns that the spec names.
    pub fn find(columns: &Columns, have: &[String]) -> Result<Self> {
        let find = |name: &str, role: &str| column(have, name, role);
        let optional = |name: &Option<String>, role: &str| name.as_deref().map(|n| find(n, role)).transpose();
        let label = find(&columns.label, "label")?;
        let group = optional(&columns.group, "group")?;
        let time = optional(&columns.time, "time")?;
        let split = optional(&columns.split, "split")?;
        let values = if columns.values.is_empty() {
            let taken = [Some(label), group, time, split];
            (0..have.len())
                .filter(|i| !taken.contains(&Some(*i)) && have[*i] != columns.path)
                .collect()
        } else {
            columns
                .values
                .iter()
                .map(|n| find(n, "values"))
                .collect::<Result<_>>()?
        };
        Ok(Self {
            label,
            group,
            time,
            split,
            values,
        })
    }
}

/// Where the column `name` is among those that a table has; `role` is its field under `spec.dataset.columns`.
pub fn column(have: &[String], name: &str, role: &str) -> Result<usize> {
    have.iter().position(|c| c == name).ok_or_else(|| {
        let some: Vec<&str> = have.iter().take(12).map(String::as_str).collect();
        WorkerError::bad(
            COLUMN_ABSENT,
            format!(
                "there is no column {name:?} (spec.dataset.columns.{role}); the table has {} columns: {}{}",
                have.len(),
                some.join(", "),
                if have.len() > some.len() { ", …" } else { "" }
            ),
        )
    })
}

/// A time in seconds: a number, or RFC 3339.
pub fn seconds(text: &str) -> Option<f64> {
    let text = text.trim();
    if let Ok(number) = text.parse::<f64>() {
        return number.is_finite().then_some(number);
    }
    let at: Timestamp = text.parse().ok()?;
    Some(at.as_millisecond() as f64 / 1e3)
}

/// A measured value; `None` where it is missing or not finite.
pub fn value(text: &str) -> Option<f32> {
    text.trim().parse::<f32>().ok().filter(|v| v.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn roles_are_found_by_name() {
        let columns = Columns {
            group: Some("user".into()),
            ..Columns::default()
        };
        let roles = Roles::find(&columns, &names(&["user", "v1", "label", "v2"])).unwrap();
        assert_eq!((roles.label, roles.group), (2, Some(0)));
        assert_eq!(roles.values, [1, 3]);
        let error = Roles::find(&columns, &names(&["user", "v1", "v2"])).unwrap_err();
        assert_eq!(error.reason(), COLUMN_ABSENT);
        assert!(
            error.message().contains("\"label\"") && error.message().contains("v1, v2"),
            "{error}"
        );
    }

    #[test]
    fn times_are_numbers_or_rfc_3339() {
        assert_eq!(seconds("12.5"), Some(12.5));
        assert_eq!(seconds("1970-01-01T00:01:00Z"), Some(60.0));
        assert_eq!(seconds("soon"), None);
        assert_eq!(seconds("NaN"), None);
    }

    #[test]
    fn values_that_are_not_finite_are_missing() {
        assert_eq!(value(" 1.5 "), Some(1.5));
        for text in ["", "NaN", "inf", "x", "1e99"] {
            assert_eq!(value(text), None, "{text}");
        }
    }

    #[test]
    fn odd_tables_are_refused() {
        for (text, reason) in [
            ("", crate::error::DATA_EMPTY),
            ("a,a\n1,2\n", DATA_FORMAT),
            ("a,b\n1,2,3\n", DATA_FORMAT),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let end = Table::open_path(file.path()).and_then(|t| t.for_each(|_, _| Ok(())));
            assert_eq!(end.unwrap_err().reason(), reason, "{text:?}");
        }
    }
}
