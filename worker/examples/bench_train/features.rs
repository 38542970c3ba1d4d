//! Features of pictures and of sentences as a job of method Head takes them.

use crate::side::serve;
use anyhow::{Context, Result};
use fleetune_crds::{Input, Task};
use fleetune_worker::engine::{Base, Graph, build};
use fleetune_worker::pipeline::{Pipeline, Prepared, Preparer, Raw};
use rayon::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Pictures of a round.
const PICTURES: usize = 32;
/// Height and width of a picture.
const SIZE: u32 = 224;
/// Sentences of a round.
const SENTENCES: usize = 512;
/// Classes of the job, which features do not depend on.
const CLASSES: usize = 2;
/// Texts that a plan takes at a time, as many as a job's.
const TEXTS_AT_ONCE: usize = 8;

fn graph(data: &Path, model: &str, input: &Input, pipeline: &Pipeline, rows: usize) -> Result<Graph> {
    let model = Base::parse(&std::fs::read(data.join(model))?)?;
    let backbone = model.cut(None, input, &pipeline.inputs)?;
    let model = build::features_model(&backbone, input, &pipeline.inputs)?;
    Ok(Graph::build_rows(&model, None, &pipeline.inputs, rows)?)
}

fn pictures(data: &Path) -> Result<Graph> {
    let input: Input = serde_json::from_value(json!({"image": {"size": SIZE}}))?;
    let pipeline = Pipeline::for_job(&input, Task::Classification, CLASSES)?;
    graph(data, "efficientnet-lite0.onnx", &input, &pipeline, 1)
}

fn picture(number: usize) -> Result<Prepared> {
    let bytes = (0..SIZE as usize * SIZE as usize * 3).map(|i| ((i * 7919 + number * 31) % 255) as u8);
    Ok(Prepared::pixels(SIZE, SIZE, bytes.collect())?)
}

/// A plan for one picture, shared by all threads.
pub fn serve_pictures(data: &Path) -> Result<()> {
    let graph = pictures(data)?;
    let all: Vec<Prepared> = (0..PICTURES).map(picture).collect::<Result<_>>()?;
    serve(PICTURES, || {
        all.par_iter().try_for_each(|picture| {
            std::hint::black_box(graph.run(picture)?);
            Ok(())
        })
    })
}

/// Prints where the time of a picture goes, the fastest of some runs.
pub fn profile_pictures(data: &Path) -> Result<()> {
    let graph = pictures(data)?;
    let picture = picture(0)?;
    graph.run(&picture)?;
    let mut fastest = graph.profile(&picture)?;
    for _ in 0..30 {
        for part in graph.profile(&picture)? {
            if let Some(known) = fastest.iter_mut().find(|known| known.operator == part.operator) {
                known.time = known.time.min(part.time);
            }
        }
    }
    crate::steps::print(&fastest);
    Ok(())
}

/// The features of one picture by a process that has just begun.
pub fn first(data: &Path) -> Result<()> {
    let features = pictures(data)?.run(&picture(0)?)?;
    println!("{}", features.first().context("no feature")?);
    Ok(())
}

/// Texts of one length go together.
pub fn serve_sentences(data: &Path) -> Result<()> {
    let tokenizer = std::fs::read(data.join("minilm-tokenizer.json"))?;
    let given = json!({"text": {"tokenizer": {"uri": "file", "sha256": hex::encode(Sha256::digest(&tokenizer))}}});
    let input: Input = serde_json::from_value(given)?;
    let preparer = Preparer::new(
        Pipeline::for_job(&input, Task::Classification, CLASSES)?,
        Some(&tokenizer),
    )?;
    let graph = graph(data, "minilm.onnx", &input, preparer.pipeline(), TEXTS_AT_ONCE)?;
    let mut by_length: BTreeMap<usize, Vec<Prepared>> = BTreeMap::new();
    for text in texts(data)? {
        let text = preparer.prepare(Raw::Text(&text))?;
        by_length.entry(text.used()).or_default().push(text);
    }
    let groups: Vec<Vec<&Prepared>> = by_length
        .values()
        .rev()
        .flat_map(|texts| texts.chunks(TEXTS_AT_ONCE))
        .map(|group| group.iter().collect())
        .collect();
    serve(SENTENCES, || {
        groups.par_iter().try_for_each(|group| {
            std::hint::black_box(graph.run_rows(group)?);
            Ok(())
        })
    })
}

/// Commands of the home, one to six of them in a text.
fn texts(data: &Path) -> Result<Vec<String>> {
    let mut reader = csv::Reader::from_path(data.join("home-intents.csv"))?;
    let column = reader.headers()?.iter().position(|h| h == "text").context("no texts")?;
    let commands: Vec<String> = reader
        .records()
        .map(|record| Ok(record?.get(column).context("no text")?.to_owned()))
        .collect::<Result<_>>()?;
    let text = |i: usize| {
        let some = commands.iter().cycle().skip(i * 7).take(1 + i % 6);
        some.map(String::as_str).collect::<Vec<_>>().join(" ")
    };
    Ok((0..SENTENCES).map(text).collect())
}
