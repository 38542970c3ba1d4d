//! Text for the page: names from outside made harmless, and numbers made short.

use std::borrow::Cow;

/// Longest name that is shown whole, in characters; the JSON has all of it.
const MAX_NAME: usize = 80;

/// Text that cannot become markup, nor change the order or the look of what stands around it: the five characters that
/// mean something in HTML are written as entities; control characters and marks of writing direction are replaced.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A name from outside, escaped and cut to what a cell of a table can show.
pub fn name(text: &str) -> String {
    escape(&cut(text, MAX_NAME))
}

/// Text of at most `max` characters, with an ellipsis where it was longer.
pub fn cut(text: &str, max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(max) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// A measured number: four digits after the point, or powers of ten where that would say nothing.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e6).contains(&size) {
        format!("{value:.3e}")
    } else {
        format!("{value:.4}")
    }
}

/// A number of bytes in megabytes (10^6).
pub fn megabytes(bytes: f64) -> String {
    let mb = bytes / 1e6;
    if mb < 10.0 {
        format!("{mb:.2} MB")
    } else {
        format!("{mb:.1} MB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_become_markup_or_turn_the_line_around() {
        assert_eq!(escape("<b a='1'>\"&"), "&lt;b a=&#39;1&#39;&gt;&quot;&amp;");
        assert_eq!(escape("a\u{202e}b\0c\n\u{2066}"), "a\u{fffd}b\u{fffd}c\u{fffd}\u{fffd}");
        assert_eq!(escape("Größe 靴"), "Größe 靴");
    }

    #[test]
    fn long_names_are_cut_before_they_are_escaped() {
        let long = "<".repeat(1000);
        assert_eq!(name(&long), format!("{}…", "&lt;".repeat(MAX_NAME)));
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöü", 2), "äö…");
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0.0000"),
            (0.89216, "0.8922"),
            (-12.5, "-12.5000"),
            (0.000_012_345, "1.234e-5"),
            (1_234_567.0, "1.235e6"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(megabytes(1_234_567.0), "1.23 MB");
        assert_eq!(megabytes(19e6), "19.0 MB");
    }
}
