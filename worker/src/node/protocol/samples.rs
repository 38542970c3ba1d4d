//! From the inputs of a request to samples: raw ones, or the tensors that the graph takes.

use super::{Bad, Input, MAX_SAMPLES, bad, datatype, shape};
use crate::node::table::{Description, RawKind, Sample};
use crate::pipeline::{Dtype, Prepared, TensorSpec};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// An input and, where its data are binary, those.
type Given<'a> = (Input, Option<&'a [u8]>);

/// The samples of a request.
pub(super) fn read(inputs: &[Given<'_>], model: &Description) -> Result<Vec<Sample>, Bad> {
    match (inputs, model.inputs.as_slice()) {
        ([(input, raw)], _) if is_raw(input, model) => match model.raw {
            RawKind::Image => images(input, *raw),
            RawKind::Text => texts(input, *raw),
            RawKind::Window => tensors(input, *raw, first(model)?),
        },
        ([(input, raw)], [own]) if is_tensor(input, own) => tensors(input, *raw, own),
        ([one, two] | [two, one], [first, second]) if is_tensor(&one.0, first) && is_tensor(&two.0, second) => {
            tokens([one, two], [first, second])
        }
        (_, [_]) if inputs.len() != 1 => bad(format!("the model takes one input, the request has {}", inputs.len())),
        _ => bad(takes(inputs, model)),
    }
}

fn is_raw(input: &Input, model: &Description) -> bool {
    input.name == model.raw.input() && input.datatype == model.raw.datatype()
}

fn is_tensor(input: &Input, own: &TensorSpec) -> bool {
    input.name == own.name && input.datatype == datatype(own.dtype)
}

/// What the model takes, and what it was given.
fn takes(inputs: &[Given<'_>], model: &Description) -> String {
    let raw = match model.raw {
        RawKind::Image => " (a PNG or JPEG file)",
        RawKind::Window => "",
        RawKind::Text => " (a text in UTF-8)",
    };
    let own: Vec<String> = model
        .inputs
        .iter()
        .map(|i| format!("{} as {}", i.name, datatype(i.dtype)))
        .collect();
    let given: Vec<String> = inputs
        .iter()
        .map(|(i, _)| format!("{:?} as {}", i.name, i.datatype))
        .collect();
    format!(
        "the model takes {} as {}{raw} or {}, not {}",
        model.raw.input(),
        model.raw.datatype(),
        own.join(" with "),
        if given.is_empty() {
            "nothing".to_owned()
        } else {
            given.join(" with ")
        }
    )
}

fn first(model: &Description) -> Result<&TensorSpec, Bad> {
    model
        .inputs
        .first()
        .ok_or_else(|| Bad("the model takes no tensor".to_owned()))
}

fn images(input: &Input, raw: Option<&[u8]>) -> Result<Vec<Sample>, Bad> {
    let decode = |text: &String| {
        STANDARD
            .decode(text)
            .map_err(|error| Bad(format!("BYTES data in JSON is base64: {error}")))
    };
    let files = bytes(input, raw, "an image comes as base64 text", decode)?;
    Ok(files.into_iter().map(Sample::Image).collect())
}

fn texts(input: &Input, raw: Option<&[u8]>) -> Result<Vec<Sample>, Bad> {
    let own = |text: &String| Ok(text.clone().into_bytes());
    bytes(input, raw, "a text comes as text", own)?
        .into_iter()
        .map(|text| match String::from_utf8(text) {
            Ok(text) => Ok(Sample::Text(text)),
            Err(error) => bad(format!("a text is not UTF-8: {error}")),
        })
        .collect()
}

/// The elements of an input of datatype BYTES; `decode` turns one from JSON into bytes.
fn bytes(
    input: &Input,
    raw: Option<&[u8]>,
    how: &str,
    decode: impl Fn(&String) -> Result<Vec<u8>, Bad>,
) -> Result<Vec<Vec<u8>>, Bad> {
    let count = elements(&input.shape)?;
    let found: Vec<Vec<u8>> = match (raw, &input.data) {
        (Some(mut bytes), None) => {
            let mut found = Vec::new();
            while !bytes.is_empty() {
                let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
                    return bad("BYTES data ends within a length");
                };
                let length = u32::from_le_bytes(*length) as usize;
                if length > rest.len() {
                    return bad(format!("a BYTES element has {length} bytes, {} are left", rest.len()));
                }
                let (one, rest) = rest.split_at(length);
                found.push(one.to_vec());
                bytes = rest;
                if found.len() > MAX_SAMPLES {
                    return bad(format!("more than {MAX_SAMPLES} samples"));
                }
            }
            found
        }
        (None, Some(data)) if data.numbers.is_empty() => data
            .texts
            .iter()
            .take(MAX_SAMPLES + 1)
            .map(decode)
            .collect::<Result<_, _>>()?,
        _ => return bad(format!("{how} in data, or as binary data")),
    };
    if found.len() as u64 != count {
        return bad(format!(
            "shape {:?} has {count} elements, the data {}",
            input.shape,
            found.len()
        ));
    }
    Ok(found)
}

/// Values of one sample after the other, and how many one has.
struct Rows<T> {
    values: Vec<T>,
    one: usize,
}

/// Checks the shape: with a batch in front, or a single sample as it is. Gives the values of one sample and of all.
fn counts(input: &Input, own: &TensorSpec) -> Result<(usize, u64), Bad> {
    let inner: Vec<u64> = own.shape.iter().skip(1).map(|edge| *edge as u64).collect();
    let one: u64 = inner.iter().product();
    let count = elements(&input.shape)?;
    let fits = input.shape == inner || input.shape.get(1..) == Some(inner.as_slice());
    if !fits || one == 0 {
        return bad(format!(
            "the model takes shape {:?}, the input has {:?}",
            shape(&own.shape),
            input.shape
        ));
    }
    if count / one > MAX_SAMPLES as u64 {
        return bad(format!("more than {MAX_SAMPLES} samples"));
    }
    Ok((one as usize, count))
}

fn mismatch<T>(input: &Input, count: u64, found: u64) -> Result<T, Bad> {
    bad(format!(
        "shape {:?} has {count} elements, the data {found}",
        input.shape
    ))
}

/// Reads a tensor whose elements have `N` bytes; `from` and `number` give an element from bytes and from JSON.
fn rows<T, const N: usize>(
    (input, raw): (&Input, Option<&[u8]>),
    own: &TensorSpec,
    from: impl Fn([u8; N]) -> T,
    number: impl Fn(f32) -> Result<T, Bad>,
) -> Result<Rows<T>, Bad> {
    let (one, count) = counts(input, own)?;
    match (raw, &input.data) {
        (Some(bytes), None) => {
            let (elements, rest) = bytes.as_chunks::<N>();
            if elements.len() as u64 != count || !rest.is_empty() {
                return mismatch(input, count, elements.len() as u64);
            }
            Ok(Rows {
                values: elements.iter().map(|b| from(*b)).collect(),
                one,
            })
        }
        (None, Some(data)) if data.texts.is_empty() => {
            if data.numbers.len() as u64 != count {
                return mismatch(input, count, data.numbers.len() as u64);
            }
            Ok(Rows {
                values: data.numbers.iter().map(|v| number(*v)).collect::<Result<_, _>>()?,
                one,
            })
        }
        _ => bad("a tensor comes as numbers in data, or as binary data"),
    }
}

fn tensors(input: &Input, raw: Option<&[u8]>, own: &TensorSpec) -> Result<Vec<Sample>, Bad> {
    match own.dtype {
        Dtype::Uint8 => {
            let byte = |v: f32| {
                if (0.0..=255.0).contains(&v) && v.fract() == 0.0 {
                    Ok(v as u8)
                } else {
                    bad("UINT8 data holds a number that is none of 0 to 255")
                }
            };
            let rows = rows((input, raw), own, |[b]: [u8; 1]| b, byte)?;
            rows.values
                .chunks_exact(rows.one)
                .map(|row| prepared(Prepared::from_bytes(Dtype::Uint8, &own.shape, row)))
                .collect()
        }
        Dtype::Fp32 => {
            let rows = rows((input, raw), own, f32::from_le_bytes, Ok)?;
            Ok(rows
                .values
                .chunks_exact(rows.one)
                .map(|row| Sample::Window(row.to_vec()))
                .collect())
        }
        Dtype::Int64 => bad("numbers of tokens come with their mask"),
    }
}

/// Numbers and masks of as many texts.
fn tokens(inputs: [&Given<'_>; 2], own: [&TensorSpec; 2]) -> Result<Vec<Sample>, Bad> {
    let read = |at: usize| {
        let (input, raw) = inputs[at];
        let whole = |v: f32| {
            if v.fract() == 0.0 {
                Ok(v as i64)
            } else {
                bad("INT64 data holds a number that is not whole")
            }
        };
        rows((input, *raw), own[at], i64::from_le_bytes, whole)
    };
    let (ids, masks) = (read(0)?, read(1)?);
    if ids.values.len() != masks.values.len() || ids.one != masks.one {
        return bad(format!(
            "{} has {} elements, {} has {}",
            own[0].name,
            ids.values.len(),
            own[1].name,
            masks.values.len()
        ));
    }
    let pairs = ids.values.chunks_exact(ids.one).zip(masks.values.chunks_exact(ids.one));
    pairs
        .map(|(ids, mask)| prepared(Prepared::tokens(ids.to_vec(), mask.to_vec())))
        .collect()
}

fn prepared(made: crate::error::Result<Prepared>) -> Result<Sample, Bad> {
    made.map(Sample::Prepared)
        .map_err(|error| Bad(error.message().to_owned()))
}

fn elements(shape: &[u64]) -> Result<u64, Bad> {
    shape
        .iter()
        .try_fold(1_u64, |product, edge| product.checked_mul(*edge))
        .filter(|count| *count > 0)
        .ok_or_else(|| Bad(format!("shape {shape:?} has no elements, or too many")))
}
