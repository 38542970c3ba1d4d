//! One request: authentication on demand, redirects by hand, errors by class, retries with growing waits.

use super::auth::Challenge;
use super::{Registry, RegistryError, Repository};
use fleetune_crds::outcome::Code;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};
use std::future::Future;

/// Most redirects of one request.
const MAX_REDIRECTS: usize = 5;
/// Most bytes of an error's body that are read.
const MAX_ERROR_BODY: usize = 512;
/// Most bytes of a token's answer.
const MAX_TOKEN: usize = 64 << 10;

/// What a request is for: it decides the scope of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Pull,
    Push,
}

impl Access {
    fn actions(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        }
    }
}

/// A request that can be made more than once.
pub(super) struct Request<'a> {
    pub(super) repository: &'a Repository,
    pub(super) access: Access,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// For messages: what is asked for.
    pub(super) what: String,
}

impl<'a> Request<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        access: Access,
        method: Method,
        url: &str,
        what: impl Into<String>,
    ) -> Result<Self, RegistryError> {
        let what = what.into();
        let url = Url::parse(url).map_err(|error| RegistryError::Protocol {
            host: repository.host.clone(),
            what: what.clone(),
            cause: format!("{url:?}: {error}"),
        })?;
        Ok(Self {
            repository,
            access,
            method,
            url,
            headers: HeaderMap::new(),
            what,
        })
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    pub(super) fn unreachable(&self, cause: impl Into<String>) -> RegistryError {
        RegistryError::Unreachable {
            host: self.repository.host.clone(),
            what: self.what.clone(),
            cause: cause.into(),
        }
    }

    pub(super) fn protocol(&self, cause: impl Into<String>) -> RegistryError {
        RegistryError::Protocol {
            host: self.repository.host.clone(),
            what: self.what.clone(),
            cause: cause.into(),
        }
    }
}

impl Registry {
    /// Sends a request without a body and returns the answer if its status is a success or one of `accept`.
    pub(super) async fn send(&self, request: &Request<'_>, accept: &[u16]) -> Result<Response, RegistryError> {
        self.send_body(request, accept, || reqwest::Body::from(Vec::new()))
            .await
    }

    /// Sends a request; `body` is asked for once per attempt.
    pub(super) async fn send_body(
        &self,
        request: &Request<'_>,
        accept: &[u16],
        body: impl Fn() -> reqwest::Body,
    ) -> Result<Response, RegistryError> {
        let mut response = self.attempt(request, &body).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.answer_challenge(request, &response).await? {
            response = self.attempt(request, &body).await?;
        }
        let status = response.status();
        if status.is_success() || accept.contains(&status.as_u16()) {
            return Ok(response);
        }
        Err(self.refusal(request, response).await)
    }

    async fn attempt(
        &self,
        request: &Request<'_>,
        body: &impl Fn() -> reqwest::Body,
    ) -> Result<Response, RegistryError> {
        let home = self.origin(request.repository)?;
        let follow = request.method == Method::GET || request.method == Method::HEAD;
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut builder = self
                .http
                .request(request.method.clone(), url.clone())
                .headers(request.headers.clone());
            // Credentials go to the registry itself, never to where it points.
            if url.origin() == home
                && let Some(header) = self.tokens.get(&self.token_key(request))
            {
                builder = builder.header(AUTHORIZATION, header);
            }
            if !follow {
                builder = builder.body(body());
            }
            let response = builder
                .send()
                .await
                .map_err(|error| request.unreachable(chain(&error)))?;
            if !follow || !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            let next = location(&url, &response).ok_or_else(|| request.protocol("a redirect without a location"))?;
            let safe = match next.scheme() {
                "https" => true,
                "http" => url.scheme() == "http",
                _ => false,
            };
            if !safe {
                return Err(request.protocol(format!("a redirect from {} to {}", url.scheme(), next.scheme())));
            }
            url = next;
        }
        Err(request.protocol(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// Gets what the registry asked for. False where nothing is to be had.
    async fn answer_challenge(&self, request: &Request<'_>, response: &Response) -> Result<bool, RegistryError> {
        let key = self.token_key(request);
        self.tokens.forget(&key);
        // An answer from behind a redirect is no word of the registry.
        if response.url().origin() != self.origin(request.repository)? {
            return Ok(false);
        }
        let challenge = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .find_map(|value| Challenge::parse(value.to_str().ok()?));
        let host = host_and_port(&request.url);
        match challenge {
            Some(Challenge::Basic) => match self.credentials.for_host(&host) {
                Some(login) => {
                    self.tokens.put(key, basic(&login.user, &login.password));
                    Ok(true)
                }
                None => Ok(false),
            },
            Some(Challenge::Bearer { realm, service, scope }) => {
                let token = self
                    .token(request, &realm, service.as_deref(), scope.as_deref())
                    .await?;
                self.tokens.put(key, format!("Bearer {token}"));
                Ok(true)
            }
            None => Ok(false),
        }
    }

    async fn token(
        &self,
        request: &Request<'_>,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<String, RegistryError> {
        #[derive(serde::Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let mut url = Url::parse(realm).map_err(|error| request.protocol(format!("realm {realm:?}: {error}")))?;
        let registry_is_plain = request.url.scheme() == "http";
        if url.scheme() != "https" && !(registry_is_plain && url.scheme() == "http") {
            return Err(request.protocol(format!("realm {realm:?} is not https")));
        }
        // The scope is ours, not the registry's: no more is asked for than is needed.
        let own = format!("repository:{}:{}", request.repository.path, request.access.actions());
        let scope = scope
            .filter(|scope| scope.starts_with("repository:") && !scope.contains(' '))
            .unwrap_or(&own);
        let scope = if scope.contains("push") && request.access == Access::Pull {
            own.as_str()
        } else {
            scope
        };
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", scope);
        }
        // The token service of a registry is often another host. Only what is keyed by that host goes there.
        let mut builder = self.http.get(url.clone());
        if let Some(login) = self.credentials.for_host(&host_and_port(&url)) {
            builder = builder.header(AUTHORIZATION, basic(&login.user, &login.password));
        }
        let response = builder
            .send()
            .await
            .map_err(|error| request.unreachable(chain(&error)))?;
        if !response.status().is_success() {
            return Err(self.refusal(request, response).await);
        }
        let bytes = bounded(response, MAX_TOKEN)
            .await
            .map_err(|cause| request.unreachable(cause))?;
        let answer: Answer =
            serde_json::from_slice(&bytes).map_err(|_| request.protocol("the token service gives no token"))?;
        answer
            .token
            .or(answer.access_token)
            .filter(|token| HeaderValue::from_str(token).is_ok())
            .ok_or_else(|| request.protocol("the token service gives no token"))
    }

    async fn refusal(&self, request: &Request<'_>, response: Response) -> RegistryError {
        let status = response.status().as_u16();
        let asked = host_and_port(response.url());
        let host = request.repository.host.clone();
        let what = request.what.clone();
        match status {
            401 | 403 => RegistryError::Unauthorized {
                hint: match self.credentials.for_host(&asked) {
                    Some(_) => format!("check the user, password and rights that are keyed by {asked}"),
                    None => format!("no credentials are keyed by {asked}: add them to the registry Secret"),
                },
                host,
                what,
                status,
            },
            404 => RegistryError::NotFound { host, what },
            _ => {
                let body = bounded(response, MAX_ERROR_BODY).await.unwrap_or_default();
                RegistryError::Status {
                    host,
                    what,
                    status,
                    body: String::from_utf8_lossy(&body).trim().to_owned(),
                }
            }
        }
    }

    /// Tries until it works, the error is none that passes, or patience ends.
    pub(super) async fn patiently<T, F, Fut>(&self, mut attempt: F) -> Result<T, RegistryError>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, RegistryError>>,
    {
        let mut tries = 0;
        loop {
            match attempt().await {
                Err(error) if error.class() == Code::Transient && tries + 1 < self.patience.attempts => {
                    let wait = self.patience.wait(tries);
                    tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "registry: trying again");
                    tokio::time::sleep(wait).await;
                    tries += 1;
                }
                other => return other,
            }
        }
    }

    fn token_key(&self, request: &Request<'_>) -> String {
        format!("{} {}", self.base(request.repository), request.access.actions())
    }

    fn origin(&self, repository: &Repository) -> Result<url::Origin, RegistryError> {
        Url::parse(&self.base(repository))
            .map(|url| url.origin())
            .map_err(|_| RegistryError::InvalidReference(repository.to_string()))
    }
}

/// Where an answer points, resolved against the address that gave it.
pub(super) fn location(from: &Url, response: &Response) -> Option<Url> {
    from.join(response.headers().get(LOCATION)?.to_str().ok()?).ok()
}

/// Reads a body of at most `limit` bytes; what is beyond is an error for a success and cut for an error text.
pub(super) async fn bounded(mut response: Response, limit: usize) -> Result<Vec<u8>, String> {
    let success = response.status().is_success();
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        let left = limit - bytes.len();
        if chunk.len() > left {
            if success {
                return Err(format!("more than {limit} bytes"));
            }
            bytes.extend_from_slice(&chunk[..left]);
            break;
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// An error with its causes, without the address, which may hold a signature.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "timed out".to_owned()
    } else if error.is_connect() {
        "cannot connect".to_owned()
    } else {
        "the connection broke".to_owned()
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    )
}

fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}
