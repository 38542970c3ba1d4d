//! `fleetune-worker export`: one self-contained `.onnx` of a version, with its weights inside, for runtimes that know no
//! external data. The answers are the same; only where the bytes lie differs.

use crate::artifact::{BACKBONE, GRAPH, TUNED};
use crate::engine::{MAX_GRAPH_BYTES, external_files, inside, parse_model};
use crate::error::{EXTERNAL_DATA, Result, WorkerError};
use crate::version::read_bounded;
use prost::Message;
use std::io::Write;
use std::path::Path;

/// Largest message that protocol buffers can hold, in bytes.
const MAX_MESSAGE: u64 = (1 << 31) - 1;

/// Writes the version in `dir` as one file, whole or not at all.
pub fn run(dir: &Path, out: &Path) -> Result<u64> {
    let files = external_files(dir, &[BACKBONE, TUNED])?;
    let total = files.values().sum::<u64>();
    if total + MAX_GRAPH_BYTES > MAX_MESSAGE {
        return Err(WorkerError::bad(
            EXTERNAL_DATA,
            format!("{total} bytes of weights do not fit one ONNX file, which holds at most 2 GiB"),
        ));
    }
    let mut model = parse_model(&read_bounded(&dir.join(GRAPH), MAX_GRAPH_BYTES)?, &files)?;
    let graph = model.graph.get_or_insert_default();
    for tensor in &mut graph.initializer {
        // Only names that the check above has found in the folder come here.
        inside(tensor, dir)?;
    }
    let bytes = model.encode_to_vec();
    let io = |error: std::io::Error| WorkerError::io("writing", out, &error);
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(parent.unwrap_or(Path::new("."))).map_err(io)?;
    file.write_all(&bytes).map_err(io)?;
    file.persist(out).map_err(|error| io(error.error))?;
    Ok(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Graph, build, external, pb, testing};
    use crate::pipeline::{Dtype, Prepared, TensorSpec};

    #[test]
    fn one_file_answers_like_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let model = testing::window_model();
        let input = [TensorSpec {
            name: "x".into(),
            dtype: Dtype::Fp32,
            shape: vec![1, 2, 8],
        }];
        let sample = Prepared::window(2, 8, testing::noise(16)).unwrap();
        let whole = Graph::build(&model, None, &input).unwrap().run(&sample).unwrap();
        build::write(dir.path(), model, &std::collections::BTreeSet::new()).unwrap();
        assert!(std::fs::metadata(dir.path().join(BACKBONE)).unwrap().len() > 2500);
        let out = dir.path().join("one.onnx");
        let size = run(dir.path(), &out).unwrap();
        let bytes = std::fs::read(&out).unwrap();
        assert_eq!(bytes.len() as u64, size);
        let single = pb::ModelProto::decode(bytes.as_slice()).unwrap();
        let outside = |tensor: &pb::TensorProto| external(tensor).unwrap().is_some();
        assert!(!single.graph.as_ref().unwrap().initializer.iter().any(outside));
        assert_eq!(
            Graph::build(&single, None, &input).unwrap().run(&sample).unwrap(),
            whole
        );
    }
}
