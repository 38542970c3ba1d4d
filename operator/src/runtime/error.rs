//! What an error means for the next try. `Classify` is implemented by every error that a reconcile can end with;
//! [`crate::runtime::controller`] is the only place that turns a class into a delay.

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Someone else wrote first: look again at once.
    Conflict,
    /// A passing cause: try again with growing delays.
    Transient,
    /// The object is wrong; only a change of it helps.
    Invalid,
    /// A fault of this program or its installation: try rarely, call a person.
    Bug,
}

/// An error that knows its class and its reason.
pub trait Classify: std::error::Error + Send + Sync + 'static {
    /// What to do about it.
    fn class(&self) -> Class;
    /// A PascalCase word for events, conditions and metric labels.
    fn reason(&self) -> &'static str;
}

/// The class of an error of the Kubernetes client.
pub fn class_of(error: &kube::Error) -> Class {
    match error {
        kube::Error::Api(status) => match status.code {
            409 => Class::Conflict,
            // Not found: something we read a moment ago is gone; 403 and 404 of a whole kind heal with the chart.
            400 | 405 | 422 => Class::Bug,
            _ => Class::Transient,
        },
        kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) | kube::Error::FromUtf8(_) => Class::Bug,
        _ => Class::Transient,
    }
}

/// The reason of an error of the Kubernetes client.
pub fn reason_of(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) => match status.code {
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            410 => "Expired",
            422 => "InvalidObject",
            429 => "TooManyRequests",
            500.. => "ServerError",
            _ => "ApiError",
        },
        kube::Error::SerdeError(_) => "UnreadableAnswer",
        kube::Error::BuildRequest(_) => "BadRequest",
        _ => "ApiUnreachable",
    }
}

/// Whether the API server answered that the object is not there.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the API server answered that the object exists, or that it changed since it was read.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// `Ok` also where the object was gone already; for deletions.
pub fn ignore_not_found<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Classify for kube::Error {
    fn class(&self) -> Class {
        class_of(self)
    }
    fn reason(&self) -> &'static str {
        reason_of(self)
    }
}

/// The message of an error and of all its sources.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        // Some errors print their source themselves.
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    fleetune_crds::conditions::cut(text)
}
