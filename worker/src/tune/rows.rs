//! The rows at the border between the frozen part and the trained one: computed once and kept where they fit into memory,
//! else computed anew whenever they are read. Both give the same values.

use crate::cache::{Cache, Key};
use crate::config::AugmentRule;
use crate::data;
use crate::engine::row::Row;
use crate::engine::step::Frozen;
use crate::error::{NOT_FINITE, Result, WorkerError};
use crate::features::prepare;
use crate::pipeline::Preparer;
use crate::progress::Tracker;
use crate::tune::vary::vary;
use rayon::prelude::*;
use std::sync::Arc;

/// Where rows come from.
pub struct Rows<'a> {
    /// What makes them.
    pub frozen: &'a Frozen,
    /// How samples are prepared.
    pub preparer: &'a Preparer,
    /// The samples.
    pub samples: Vec<&'a data::Row>,
    /// How they vary; none for validation rows.
    pub augment: Option<AugmentRule>,
    /// Seed of the variants.
    pub seed: u64,
    /// Tokens of a text.
    pub tokens: usize,
    kept: Option<Vec<Arc<Row>>>,
}

impl<'a> Rows<'a> {
    /// Rows that are computed whenever they are read.
    pub fn new(
        frozen: &'a Frozen,
        preparer: &'a Preparer,
        samples: Vec<&'a data::Row>,
        augment: Option<AugmentRule>,
        seed: u64,
        tokens: usize,
    ) -> Self {
        Self {
            frozen,
            preparer,
            samples,
            augment,
            seed,
            tokens,
            kept: None,
        }
    }

    /// Number of rows, kept variants included: variant c of row r is number c · rows + r, and variant 0 the row itself.
    pub fn len(&self) -> usize {
        self.samples.len() * (1 + self.augment.and_then(|a| a.copies).unwrap_or(0))
    }

    /// Whether a row is the same in every step, so that it can be kept.
    pub fn can_be_kept(&self) -> bool {
        self.augment.is_none_or(|a| a.copies.is_some())
    }

    /// The sample that row `number` is, or is a variant of.
    pub fn sample(&self, number: usize) -> usize {
        number % self.samples.len().max(1)
    }

    /// Computes all rows and keeps them, or takes them from `cache`, where an earlier run left them.
    pub fn keep(&mut self, cache: Option<&(Cache, Key)>, tracker: &Tracker) -> Result<()> {
        let compute = || -> Result<Vec<Arc<Row>>> {
            let row = |i| {
                let row = self.compute(i, 0);
                tracker.add(1);
                row.map(Arc::new)
            };
            let rows: Vec<Result<Arc<Row>>> = (0..self.len()).into_par_iter().map(row).collect();
            rows.into_iter().collect()
        };
        self.kept = Some(match cache {
            Some((cache, key)) if !self.samples.is_empty() => {
                let like = self.compute(0, 0)?;
                let form = (self.len(), like.bytes() as usize);
                let read = |bytes: &[u8]| like.with_bytes(bytes).map(Arc::new);
                cache.rows(key, form, (read, |row| row.to_bytes()), tracker, compute)?
            }
            _ => compute()?,
        });
        Ok(())
    }

    /// Row `number` in step `step`.
    pub fn get(&self, number: usize, step: u32) -> Result<Arc<Row>> {
        match self.kept.as_ref().and_then(|kept| kept.get(number)) {
            Some(row) => Ok(row.clone()),
            None => self.compute(number, step).map(Arc::new),
        }
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> Result<u64> {
        if self.samples.is_empty() {
            return Ok(0);
        }
        Ok(self.compute(0, 0)?.bytes())
    }

    fn compute(&self, number: usize, step: u32) -> Result<Row> {
        let sample = self.sample(number);
        let source = self.samples[sample];
        let mut prepared = prepare(self.preparer, source)?.shortened(self.tokens);
        if let Some(rule) = &self.augment {
            let copy = (number / self.samples.len()) as u32;
            let place = if rule.copies.is_some() { copy } else { step };
            // Kept rows have the sample itself as variant 0.
            if rule.copies.is_none() || copy > 0 {
                prepared = vary(rule, self.seed, place, sample as u32, prepared);
            }
        }
        let row = self.frozen.row(&prepared)?;
        if row.is_finite() {
            return Ok(row);
        }
        Err(WorkerError::bad(
            NOT_FINITE,
            format!("{}: the base model gives values that are not finite", source.key),
        ))
    }
}
