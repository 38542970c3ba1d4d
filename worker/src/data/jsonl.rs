//! JSON lines: one flat object a line. The first names the columns; a later one may leave some out, which are then
//! empty, but name no other.

use crate::error::{DATA_EMPTY, DATA_FORMAT, Result, WorkerError};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};

/// Longest line, in bytes.
const MAX_LINE: u64 = 8 << 20;

/// The objects of a file, read one by one.
pub struct Lines {
    reader: BufReader<File>,
    first: Option<Object>,
    line: u64,
}

impl Lines {
    /// Opens `file` and reads its first object; with it come the names of the columns.
    pub fn open(file: File) -> Result<(Self, Vec<String>)> {
        let mut lines = Self {
            reader: BufReader::with_capacity(1 << 16, file),
            first: None,
            line: 0,
        };
        let first = lines
            .next()?
            .ok_or_else(|| WorkerError::bad(DATA_EMPTY, "the table is empty: write one JSON object a line"))?;
        let columns = first.0.iter().map(|(name, _)| name.clone()).collect();
        lines.first = Some(first);
        Ok((lines, columns))
    }

    /// Calls `each` with the number of every object (the first is 1) and its values in the order of `columns`.
    pub fn for_each(mut self, columns: &[String], mut each: impl FnMut(u64, &[&str]) -> Result<()>) -> Result<()> {
        let places: HashMap<&str, usize> = columns.iter().enumerate().map(|(i, c)| (c.as_str(), i)).collect();
        let mut number = 0;
        let mut next = self.first.take();
        while let Some(object) = next {
            number += 1;
            let mut cells = vec![None; columns.len()];
            for (name, value) in &object.0 {
                let cell = places.get(name.as_str()).map(|place| &mut cells[*place]);
                match cell {
                    Some(cell @ None) => *cell = Some(value.as_str()),
                    Some(Some(_)) => return Err(self.bad(&format!("the key {name:?} is there twice"))),
                    None => return Err(self.bad(&format!("the first line has no key {name:?}"))),
                }
            }
            let cells: Vec<&str> = cells.into_iter().map(Option::unwrap_or_default).collect();
            each(number, &cells)?;
            next = self.next()?;
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Object>> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            self.line += 1;
            let read = self.reader.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut bytes);
            match read {
                Err(e) => {
                    return Err(WorkerError::transient(
                        crate::error::IO,
                        format!("reading the table: {e}"),
                    ));
                }
                Ok(0) => return Ok(None),
                Ok(n) if n as u64 > MAX_LINE => return Err(self.bad(&format!("it has more than {MAX_LINE} bytes"))),
                Ok(_) if bytes.trim_ascii().is_empty() => {}
                Ok(_) => break,
            }
        }
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| self.bad(&e.to_string()))
    }

    fn bad(&self, why: &str) -> WorkerError {
        WorkerError::bad(
            DATA_FORMAT,
            format!("line {} is not a flat JSON object like the first: {why}", self.line),
        )
    }
}

/// An object's keys and values, in the order of the file, all values as text.
struct Object(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts and numbers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut fields = Vec::new();
        while let Some((name, Cell(value))) = map.next_entry()? {
            fields.push((name, value));
        }
        Ok(Object(fields))
    }
}

/// A value as text; nothing for null.
struct Cell(String);

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(CellVisitor)
    }
}

struct CellVisitor;

impl Visitor<'_> for CellVisitor {
    type Value = Cell;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, true, false or null")
    }

    fn visit_unit<E: Error>(self) -> Result<Cell, E> {
        Ok(Cell(String::new()))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Cell, E> {
        Ok(Cell(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Cell, E> {
        Ok(Cell(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Cell, E> {
        Ok(Cell(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Cell, E> {
        Ok(Cell(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Cell, E> {
        Ok(Cell(value.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Table;
    use super::*;

    fn rows(bytes: &[u8]) -> Result<(Vec<String>, Vec<Vec<String>>)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let table = Table::open_path(file.path())?;
        let columns = table.columns().to_vec();
        let mut rows = Vec::new();
        table.for_each(|number, cells| {
            assert_eq!(number as usize, rows.len() + 1);
            rows.push(cells.iter().map(|c| (*c).to_owned()).collect());
            Ok(())
        })?;
        Ok((columns, rows))
    }

    #[test]
    fn objects_are_rows_and_keys_are_columns() {
        let text = "{\"text\": \"a \\\"b\\\"\\n\\u00e9\", \"n\": 1.5, \"label\": \"x\"}\n\n  {\"label\": true, \"n\": -3}\n{\"text\": null}";
        let (columns, rows) = rows(text.as_bytes()).unwrap();
        assert_eq!(columns, ["text", "n", "label"], "in the order of the file");
        assert_eq!(
            rows,
            [["a \"b\"\n\u{e9}", "1.5", "x"], ["", "-3", "true"], ["", "", ""]]
        );
    }

    #[test]
    fn what_is_no_flat_object_like_the_first_is_refused() {
        let long = format!("{{\"a\": \"{}\"}}", "x".repeat(MAX_LINE as usize));
        for (what, text, place) in [
            ("an array", &b"{\"a\": 1}\n[1]"[..], "line 2"),
            ("nested", b"{\"a\": {\"b\": 1}}", "line 1"),
            ("another key", b"{\"a\": 1}\n{\"b\": 1}", "line 2"),
            ("a key twice", b"{\"a\": 1}\n\n{\"a\": 1, \"a\": 2}", "line 3"),
            ("a key twice in the first", b"{\"a\": 1, \"a\": 2}", "twice"),
            ("two in a line", b"{\"a\": 1} {\"a\": 2}", "line 1"),
            ("half a line", b"{\"a\": 1}\n{\"a\": ", "line 2"),
            ("not UTF-8", b"{\"a\": \"\xff\"}", "line 1"),
            ("a long line", long.as_bytes(), "line 1"),
        ] {
            let error = rows(text).unwrap_err();
            assert_eq!(error.reason(), DATA_FORMAT, "{what}");
            assert!(error.message().contains(place), "{what}: {error}");
        }
    }
}
