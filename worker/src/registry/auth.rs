//! Credentials: read from a docker-style `config.json`, used for the host they are keyed by and for no other.

use super::RegistryError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Largest credentials file that is read, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// User names and passwords by host.
#[derive(Clone, Default)]
pub struct Credentials(Arc<BTreeMap<String, Login>>);

#[derive(Clone)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
}

impl Credentials {
    /// Reads a docker-style `config.json`. Helpers are not run: only what is in the file counts.
    pub fn read(path: &Path) -> Result<Self, RegistryError> {
        let bad = |what: String| RegistryError::BadCredentials {
            path: path.to_owned(),
            what,
        };
        let mut text = String::new();
        std::fs::File::open(path)
            .map_err(|error| bad(error.to_string()))?
            .take(MAX_CONFIG)
            .read_to_string(&mut text)
            .map_err(|error| bad(error.to_string()))?;
        Self::parse(&text).map_err(bad)
    }

    /// Reads the text of a docker-style `config.json`.
    pub fn parse(text: &str) -> Result<Self, String> {
        // The parser's own message would quote the file, and with it a password.
        let config: Config = serde_json::from_str(text).map_err(|error| {
            format!(
                "not a docker config.json (line {}, column {})",
                error.line(),
                error.column()
            )
        })?;
        let mut logins = BTreeMap::new();
        for (key, entry) in config.auths {
            let host = host_of(&key);
            let login = match entry {
                Entry {
                    username: Some(user),
                    password: Some(password),
                    ..
                } => Login { user, password },
                Entry { auth: Some(auth), .. } => {
                    decode(&auth).ok_or_else(|| format!("auths[{host:?}].auth is not base64 of USER:PASSWORD"))?
                }
                _ => return Err(format!("auths[{host:?}] has neither auth nor username and password")),
            };
            logins.insert(host, login);
        }
        Ok(Self(Arc::new(logins)))
    }

    pub(super) fn for_host(&self, host: &str) -> Option<&Login> {
        // Docker's own registry answers under other names than the one its credentials are keyed by.
        let key = match host {
            "registry-1.docker.io" | "docker.io" | "auth.docker.io" => "index.docker.io",
            host => host,
        };
        self.0.get(key).or_else(|| self.0.get(host))
    }
}

fn host_of(key: &str) -> String {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    key.split('/').next().unwrap_or(key).to_owned()
}

fn decode(auth: &str) -> Option<Login> {
    let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Login {
        user: user.to_owned(),
        password: password.to_owned(),
    })
}

/// What a repository's requests carry, by origin and scope.
#[derive(Clone, Default)]
pub(super) struct Tokens(Arc<Mutex<HashMap<String, String>>>);

impl Tokens {
    pub(super) fn get(&self, key: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub(super) fn put(&self, key: String, header: String) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, header);
    }

    pub(super) fn forget(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// What a registry asks for in `WWW-Authenticate`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from another address.
    Bearer {
        /// Where to get it.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

impl Challenge {
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut fields = parameters(rest);
        Some(Self::Bearer {
            realm: fields.remove("realm")?,
            service: fields.remove("service"),
            scope: fields.remove("scope"),
        })
    }
}

/// The `key="value"` pairs of a challenge. Commas may stand inside quotes.
fn parameters(mut rest: &str) -> HashMap<String, String> {
    let mut fields = HashMap::new();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => match quoted.split_once('"') {
                Some((value, next)) => (value, next),
                None => break,
            },
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        fields.insert(key.trim().to_ascii_lowercase(), value.to_owned());
        rest = next.trim_start().trim_start_matches(',').trim_start();
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_keyed_by_host() {
        let text = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "YTpi"}, "registry.lab:5000": {"username": "u", "password": "p:q"}}}"#;
        let found = Credentials::parse(text).unwrap();
        assert_eq!(found.for_host("registry.lab:5000").unwrap().password, "p:q");
        assert_eq!(found.for_host("registry-1.docker.io").unwrap().user, "a");
        assert!(found.for_host("registry.lab").is_none());
        assert!(found.for_host("registry.lab:5001").is_none());
        assert!(!format!("{found:?}").contains("p:q"));
    }

    #[test]
    fn bad_credentials_say_what_but_not_the_secret() {
        for text in [
            "secret",
            r#"{"auths": {"h": {"auth": "secret!"}}}"#,
            r#"{"auths": {"h": {}}}"#,
        ] {
            let message = Credentials::parse(text).unwrap_err();
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn challenges_parse() {
        assert_eq!(Challenge::parse(r#"Basic realm="x""#), Some(Challenge::Basic));
        assert_eq!(
            Challenge::parse(r#"Bearer realm="https://a/t",service="r",scope="repository:a/b:pull,push""#),
            Some(Challenge::Bearer {
                realm: "https://a/t".into(),
                service: Some("r".into()),
                scope: Some("repository:a/b:pull,push".into())
            })
        );
        assert_eq!(Challenge::parse("Bearer service=x"), None);
        assert_eq!(Challenge::parse("Negotiate"), None);
    }
}
