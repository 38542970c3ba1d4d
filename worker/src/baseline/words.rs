//! What the cheap baseline sees of a text: how often it has which words, weighted by how rare they are.

use crate::data::checks::words;
use std::collections::HashMap;

/// Most words that count: the ones that the most training texts have.
const MAX_WORDS: usize = 2048;

/// The words of the training texts.
#[derive(Debug)]
pub struct Words {
    places: HashMap<String, usize>,
    rarity: Vec<f64>,
}

impl Words {
    /// The words of some texts, with their inverse document frequency `ln((1 + texts) / (1 + texts with it)) + 1`
    /// (smoothed as in scikit-learn).
    pub fn of<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let mut found: HashMap<String, usize> = HashMap::new();
        let mut count = 0;
        for text in texts {
            count += 1;
            let mut own: Vec<String> = words(text).collect();
            own.sort_unstable();
            own.dedup();
            for word in own {
                *found.entry(word).or_default() += 1;
            }
        }
        let mut list: Vec<(String, usize)> = found.into_iter().collect();
        list.sort_unstable_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
        list.truncate(MAX_WORDS);
        let rarity = list
            .iter()
            .map(|(_, n)| (f64::from(1 + count) / (1 + n) as f64).ln() + 1.0)
            .collect();
        let places = list.into_iter().enumerate().map(|(i, (word, _))| (word, i)).collect();
        Self { places, rarity }
    }

    /// How often the text has each word, times the word's rarity, scaled to unit length; zeros where it has none.
    pub fn features(&self, text: &str) -> Vec<f32> {
        let mut features = vec![0.0; self.rarity.len()];
        for place in words(text).filter_map(|word| self.places.get(&word)) {
            features[*place] += self.rarity[*place];
        }
        let length = features.iter().map(|v| v * v).sum::<f64>().sqrt();
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        features.into_iter().map(|v| (v * scale) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequency_and_rarity_by_hand() {
        let words = Words::of(["On, on!", "off", "on"].into_iter());
        // "on" is in two of three texts, "off" in one.
        let (on, off) = ((4.0f64 / 3.0).ln() + 1.0, (4.0f64 / 2.0).ln() + 1.0);
        let length = ((2.0 * on).powi(2) + off.powi(2)).sqrt();
        let features = words.features("on off ON unknown");
        assert_eq!(features.len(), 2);
        assert!(
            (f64::from(features[0]) - 2.0 * on / length).abs() < 1e-6,
            "{features:?}"
        );
        assert!((f64::from(features[1]) - off / length).abs() < 1e-6, "{features:?}");
        assert_eq!(words.features("nothing"), [0.0, 0.0]);
    }

    #[test]
    fn the_most_frequent_words_count() {
        let texts: Vec<String> = (0..MAX_WORDS + 10).map(|i| format!("all w{i}")).collect();
        let words = Words::of(texts.iter().map(String::as_str));
        assert_eq!(words.rarity.len(), MAX_WORDS);
        assert_eq!(words.places["all"], 0);
        assert!(words.features("all")[0] > 0.99);
    }
}
