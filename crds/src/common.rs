//! Field types that several kinds share: durations, decimals, byte quantities, counts or percents, OCI digests.
//!
//! Decimals and durations are strings in the API, because floats do not survive JSON and server-side apply.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// A field value that does not have the form its type asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a {expected}")]
pub struct ParseError {
    value: String,
    expected: &'static str,
}

macro_rules! string_type {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $pattern:literal, $max:literal, $parsed:ty, $parse:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl TryFrom<String> for $name {
            type Error = ParseError;
            fn try_from(value: String) -> Result<Self, ParseError> {
                match $parse(&value) {
                    Some(_) => Ok(Self(value)),
                    None => Err(ParseError { value, expected: $expected }),
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = ParseError;
            fn from_str(value: &str) -> Result<Self, ParseError> {
                Self::try_from(value.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl $name {
            /// The text as it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The parsed value. Construction has already refused what does not parse.
            pub fn get(&self) -> $parsed {
                $parse(&self.0).unwrap_or_default()
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "minLength": 1, "maxLength": $max })
            }
        }
    };
}

string_type!(
    /// A length of time such as `90s`, `10m`, `1h30m` or `50ms`; hours, minutes, seconds and milliseconds, in that order.
    Span, "duration such as 10m, 1h30m or 50ms", r"^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?([0-9]{1,6}ms)?$", 32,
    Duration, parse_span
);
string_type!(
    /// A decimal number such as `0.80`, at most nine digits on either side of the point.
    Decimal, "decimal such as 0.80", r"^-?[0-9]{1,9}(\.[0-9]{1,9})?$", 21, f64, parse_decimal
);
string_type!(
    /// A number of bytes such as `8Mi`, `500k` or `1048576`.
    Bytes, "number of bytes such as 8Mi", r"^[0-9]{1,12}(k|M|G|Ki|Mi|Gi)?$", 16, u64, parse_bytes
);
string_type!(
    /// A count (`3`) or a share (`10%`, at most 100 %), always written as a string in the stored form.
    CountOrPercent, "count such as 3 or a percentage such as 10%", r"^([0-9]{1,6}|([0-9]|[1-9][0-9]|100)%)$", 6,
    Amount, parse_amount
);
string_type!(
    /// A content digest in OCI form, `sha256:` and 64 lower-case hex digits.
    Digest, "digest of the form sha256:<64 hex digits>", r"^sha256:[0-9a-f]{64}$", 71, String, parse_digest
);

/// What a [`CountOrPercent`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// An absolute number.
    Count(u32),
    /// A share in percent, 0 to 100.
    Percent(u32),
}

impl Default for Amount {
    fn default() -> Self {
        Self::Count(0)
    }
}

impl Amount {
    /// The absolute number out of `total`, percent rounded up.
    pub fn of(self, total: u32) -> u32 {
        match self {
            Self::Count(n) => n,
            Self::Percent(p) => u32::try_from((u64::from(total) * u64::from(p)).div_ceil(100)).unwrap_or(u32::MAX),
        }
    }
}

impl From<Duration> for Span {
    fn from(value: Duration) -> Self {
        match value.subsec_millis() {
            0 => Self(format!("{}s", value.as_secs())),
            millis => Self(format!("{}s{millis}ms", value.as_secs())),
        }
    }
}

impl Decimal {
    /// The nearest decimal with at most six digits after the point; `None` where the value is not finite or too large.
    pub fn from_f64(value: f64) -> Option<Self> {
        let text = format!("{value:.6}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        text.parse().ok()
    }
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes))))
    }

    /// A digest from the finished state of a SHA-256 hash.
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self(format!("sha256:{}", hex::encode(hash)))
    }

    /// The 64 hex digits, without the algorithm.
    pub fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }

    /// The first twelve hex digits, which name a ModelVersion and fit a label.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

fn parse_span(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    for (unit, millis) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let after = &rest[end..];
        let unit_len = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        if &after[..unit_len] == unit {
            total += Duration::from_millis(digits(&rest[..end], 6)? * millis);
            rest = &after[unit_len..];
        }
    }
    (rest.is_empty() && !text.is_empty()).then_some(total)
}

fn parse_decimal(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    digits(whole, 9)?;
    digits(fraction, 9)?;
    text.parse().ok()
}

fn parse_bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match &text[end..] {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    digits(&text[..end], 12)?.checked_mul(factor)
}

fn parse_amount(text: &str) -> Option<Amount> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let value = u32::try_from(digits(percent, 3)?).ok()?;
            (value <= 100).then_some(Amount::Percent(value))
        }
        None => u32::try_from(digits(text, 6)?).ok().map(Amount::Count),
    }
}

fn parse_digest(text: &str) -> Option<String> {
    let hex = text.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))).then(|| text.to_owned())
}

fn digits(text: &str, max: usize) -> Option<u64> {
    (!text.is_empty() && text.len() <= max && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// The schema of a field that takes a bare integer as well as a string (`nodes: 1` and `nodes: "10%"`).
pub fn int_or_string(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "anyOf": [{ "type": "integer" }, { "type": "string" }],
        "pattern": r"^([0-9]{1,6}|([0-9]|[1-9][0-9]|100)%)$",
        "minimum": 0,
        "maximum": 999_999,
    })
}

/// Serde for a [`CountOrPercent`] that may be written as a bare integer.
pub mod count_or_percent {
    use super::CountOrPercent;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Raw {
        Int(u32),
        Text(String),
    }

    /// Writes counts as integers and shares as strings, the way people write them.
    pub fn serialize<S: Serializer>(value: &CountOrPercent, to: S) -> Result<S::Ok, S::Error> {
        match value.as_str().parse::<u32>() {
            Ok(count) => to.serialize_u32(count),
            Err(_) => to.serialize_str(value.as_str()),
        }
    }

    /// Reads either form.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<CountOrPercent, D::Error> {
        let text = match Raw::deserialize(from)? {
            Raw::Int(count) => count.to_string(),
            Raw::Text(text) => text,
        };
        CountOrPercent::try_from(text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_parse_and_refuse() {
        for (text, secs) in [("90s", 90), ("10m", 600), ("1h30m", 5400), ("0s", 0), ("1h1m1s", 3661)] {
            assert_eq!(text.parse::<Span>().unwrap().get(), Duration::from_secs(secs), "{text}");
        }
        assert_eq!("1m50ms".parse::<Span>().unwrap().get(), Duration::from_millis(60_050));
        for text in ["", "10", "m", "5ms1s", "1m1h", "-1s", "1.5h", "9999999s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn decimals_parse_and_refuse() {
        assert!((("0.80").parse::<Decimal>().unwrap().get() - 0.8).abs() < 1e-12);
        assert_eq!(Decimal::from_f64(0.857_142_857).unwrap().as_str(), "0.857143");
        assert_eq!(Decimal::from_f64(3.0).unwrap().as_str(), "3");
        assert_eq!(Decimal::from_f64(f64::NAN), None);
        for text in ["", ".5", "1e3", "NaN", "+1", "1.", "--1"] {
            assert!(text.parse::<Decimal>().is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_and_amounts_parse_and_refuse() {
        assert_eq!("8Mi".parse::<Bytes>().unwrap().get(), 8 << 20);
        assert_eq!("500k".parse::<Bytes>().unwrap().get(), 500_000);
        assert!("8MB".parse::<Bytes>().is_err());
        assert_eq!(
            "10%".parse::<CountOrPercent>().unwrap().get().of(11),
            2,
            "a share is rounded up"
        );
        assert_eq!("0%".parse::<CountOrPercent>().unwrap().get().of(11), 0);
        assert_eq!("3".parse::<CountOrPercent>().unwrap().get().of(1), 3);
        for text in ["101%", "-1", "%", "1.5", ""] {
            assert!(text.parse::<CountOrPercent>().is_err(), "{text}");
        }
    }

    #[test]
    fn digests_are_checked() {
        let digest = Digest::of(b"");
        assert_eq!(digest.short(), "e3b0c44298fc");
        assert!(digest.as_str().parse::<Digest>().is_ok());
        assert!("sha256:E3".parse::<Digest>().is_err());
        assert!("md5:00".parse::<Digest>().is_err());
    }
}
