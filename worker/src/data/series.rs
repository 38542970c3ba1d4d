//! Tables in long format: one row a sample, cut into windows. A series is split first and windowed after; between two
//! parts of one series lies a gap of one window, so that no value is seen by two parts and neighbours are apart.

use super::rows::{bad_time, hash};
use super::split::{of_key, of_name, of_time, times};
use super::table::{Roles, Table, seconds, value};
use super::{Bad, Content, Draft, Found, Part, checks};
use crate::config::{Job, SplitRule};
use crate::error::{INPUT_SHAPE, INVALID_JOB, INVALID_SPLIT, MISSING_VALUES, Result, WorkerError};
use fleetune_crds::{SensorInput, SplitBy, Task};
use std::collections::BTreeMap;
use std::path::Path;

/// Windows in one block of a series that is split at random: a block goes to one part as a whole.
const BLOCK_WINDOWS: usize = 16;
/// A step in time above this many median steps is a hole in the series; no window spans it.
const HOLE: f64 = 2.5;

/// One series.
#[derive(Default)]
struct Track {
    time: Vec<f64>,
    /// `channels` values of each sample; NaN where missing.
    values: Vec<f32>,
    /// Empty where unlabelled.
    labels: Vec<String>,
    parts: Vec<Option<Part>>,
}

/// Reads the table at `path` and cuts it into windows.
pub fn read(path: &Path, job: &Job) -> Result<Found> {
    let Some(sensor) = &job.spec.input.sensor else {
        return Err(WorkerError::bad(INVALID_JOB, "format Series takes input.sensor"));
    };
    let mut tracks = tracks(path, job, sensor)?;
    for track in tracks.values_mut() {
        track.sort(sensor.channels as usize);
    }
    let borders = match job.split.by {
        SplitBy::Time => times(
            &job.split,
            tracks.values().flat_map(|t| t.time.iter().copied()).collect(),
        ),
        _ => (0.0, 0.0),
    };
    let mut found = Found::default();
    for (group, track) in &tracks {
        let parts = parts(group, track, &job.split, borders, sensor.window as usize)?;
        cut(group, track, &parts, sensor, job.spec.task, &mut found);
    }
    Ok(found)
}

fn tracks(path: &Path, job: &Job, sensor: &SensorInput) -> Result<BTreeMap<String, Track>> {
    let table = Table::open_path(path)?;
    let roles = Roles::find(&job.spec.dataset.columns, table.columns())?;
    if roles.values.len() != sensor.channels as usize {
        return Err(WorkerError::bad(
            INPUT_SHAPE,
            format!(
                "the table has {} value columns, input.sensor.channels is {}: name the columns in spec.dataset.columns.values",
                roles.values.len(),
                sensor.channels
            ),
        ));
    }
    let Some(time) = roles.time else {
        return Err(WorkerError::bad(
            INVALID_JOB,
            "format Series needs spec.dataset.columns.time",
        ));
    };
    let mut tracks: BTreeMap<String, Track> = BTreeMap::new();
    table.for_each(|number, cells| {
        let group = roles.group.map_or("series", |i| cells[i]);
        if !tracks.contains_key(group) {
            tracks.insert(group.to_owned(), Track::default());
        }
        let Some(track) = tracks.get_mut(group) else {
            return Ok(());
        };
        track
            .time
            .push(seconds(cells[time]).ok_or_else(|| bad_time(&format!("row {number}"), cells[time]))?);
        track
            .values
            .extend(roles.values.iter().map(|i| value(cells[*i]).unwrap_or(f32::NAN)));
        track.labels.push(cells[roles.label].trim().to_owned());
        track.parts.push(roles.split.and_then(|i| of_name(cells[i])));
        Ok(())
    })?;
    Ok(tracks)
}

impl Track {
    fn sort(&mut self, channels: usize) {
        if self.time.is_sorted() {
            return;
        }
        let mut order: Vec<usize> = (0..self.time.len()).collect();
        order.sort_by(|a, b| self.time[*a].total_cmp(&self.time[*b]));
        self.values = order
            .iter()
            .flat_map(|i| self.values[i * channels..(i + 1) * channels].iter().copied())
            .collect();
        self.time = order.iter().map(|i| self.time[*i]).collect();
        self.labels = order.iter().map(|i| std::mem::take(&mut self.labels[*i])).collect();
        self.parts = order.iter().map(|i| self.parts[*i]).collect();
    }

    /// Whether a hole lies before each sample.
    fn holes(&self) -> Vec<bool> {
        let mut steps: Vec<f64> = self.time.windows(2).map(|w| w[1] - w[0]).collect();
        let mut sorted = steps.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        steps.insert(0, 0.0);
        steps.iter().map(|s| median > 0.0 && *s > HOLE * median).collect()
    }
}

/// The part of each sample; `None` in a gap.
fn parts(
    group: &str,
    track: &Track,
    rule: &SplitRule,
    borders: (f64, f64),
    window: usize,
) -> Result<Vec<Option<Part>>> {
    let n = track.time.len();
    let raw: Vec<Part> = match rule.by {
        SplitBy::Group => vec![of_key(rule, group.as_bytes()); n],
        SplitBy::Time => track.time.iter().map(|t| of_time(borders, *t)).collect(),
        SplitBy::Random => {
            let block = BLOCK_WINDOWS * window;
            (0..n)
                .map(|i| of_key(rule, format!("{group}\0{}", i / block).as_bytes()))
                .collect()
        }
        SplitBy::Column => track
            .parts
            .iter()
            .enumerate()
            .map(|(i, part)| {
                part.ok_or_else(|| {
                    WorkerError::bad(
                        INVALID_SPLIT,
                        format!("{group}, sample {i}: its split is none of train, validation and test"),
                    )
                })
            })
            .collect::<Result<_>>()?,
    };
    let mut parts: Vec<Option<Part>> = raw.iter().copied().map(Some).collect();
    for border in (1..n).filter(|i| raw[*i] != raw[i - 1]) {
        for part in parts.iter_mut().skip(border).take(window) {
            *part = None;
        }
    }
    Ok(parts)
}

fn cut(group: &str, track: &Track, parts: &[Option<Part>], sensor: &SensorInput, task: Task, found: &mut Found) {
    let (window, channels) = (sensor.window as usize, sensor.channels as usize);
    let stride = sensor.stride.unwrap_or(sensor.window) as usize;
    let holes = track.holes();
    let n = track.time.len();
    let mut leave = |why: &'static str| *found.left_out.entry(why).or_default() += 1;
    let mut drafts = Vec::new();
    let mut bad = Vec::new();
    for start in (0..n.saturating_sub(window - 1)).step_by(stride) {
        let end = start + window;
        let Some(part) = parts[start].filter(|p| parts[start..end].iter().all(|q| *q == Some(*p))) else {
            leave("windows in a gap between parts");
            continue;
        };
        if holes[start + 1..end].iter().any(|h| *h) {
            leave("windows over a hole in time");
            continue;
        }
        let Some(label) = label(&track.labels[start..end], task) else {
            leave("windows without one label");
            continue;
        };
        let key = format!("{group}@{start}");
        let samples = &track.values[start * channels..end * channels];
        if samples.iter().any(|v| !v.is_finite()) {
            bad.push(Bad {
                key,
                reason: MISSING_VALUES,
                why: "a value in this window is missing or not a finite number".to_owned(),
            });
            continue;
        }
        let values: Vec<f32> = (0..channels)
            .flat_map(|c| samples.iter().skip(c).step_by(channels).copied())
            .collect();
        drafts.push(Draft {
            key,
            label: label.to_owned(),
            group: Some(group.to_owned()),
            time: Some(track.time[start]),
            part: Some(part),
            hash: hash(&values),
            fingerprint: checks::of_window(&values),
            content: Content::Window(values),
        });
    }
    found.drafts.append(&mut drafts);
    found.bad.append(&mut bad);
}

/// A window's label: the one that all its samples have, or, for a Regression, the last sample's target.
fn label(labels: &[String], task: Task) -> Option<&str> {
    let last = labels.last().filter(|l| !l.is_empty())?;
    match task {
        Task::Classification => labels.iter().all(|l| l == last).then_some(last),
        Task::Regression => Some(last),
    }
}
