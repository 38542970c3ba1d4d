//! An API server in memory behind a real client: names, resourceVersions, generations, finalizers, uid preconditions,
//! merge patches, status as a subresource, label and field selectors. It simplifies where it says so: server-side apply
//! replaces the whole status and merges everything else (one manager a field), nothing is collected or defaulted, no
//! schema is checked, and there are no watches.

use axum::http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The server; clones share it.
#[derive(Clone, Default)]
pub struct MockApi(Arc<Mutex<World>>);

/// One request that changed something or could have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// POST, PATCH, PUT or DELETE.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The field manager, if one was named.
    pub manager: Option<String>,
    /// The answer's code.
    pub code: u16,
}

#[derive(Default)]
struct World {
    objects: BTreeMap<String, Value>,
    clock: u64,
    writes: Vec<Write>,
    /// Accepted writes left until the crash; from then on nothing is answered.
    until_crash: Option<u32>,
    crashed: bool,
    /// Paths whose next request gets this code instead.
    faults: Vec<(String, u16)>,
}

struct Answer(u16, Value);

fn refuse(code: u16, reason: &str, message: &str) -> Answer {
    Answer(
        code,
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message }),
    )
}

impl MockApi {
    /// A client of this server. Needs a tokio runtime.
    pub fn client(&self, namespace: &str) -> Client {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let this = self.clone();
        tokio::spawn(async move {
            while let Some((request, send)) = handle.next_request().await {
                let (parts, body) = request.into_parts();
                let bytes = body.collect_bytes().await.unwrap_or_default();
                let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                let query: BTreeMap<String, String> = parts.uri.query().map(parse_query).unwrap_or_default();
                let Answer(code, value) = this.world().answer(&parts.method, parts.uri.path(), &query, body);
                let bytes = serde_json::to_vec(&value).expect("a value is JSON");
                let status = StatusCode::from_u16(code).expect("a code of ours");
                send.send_response(
                    Response::builder()
                        .status(status)
                        .header("content-type", "application/json")
                        .body(Body::from(bytes))
                        .expect("a response"),
                );
            }
        });
        Client::new(service, namespace)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an object at a path, as another client would.
    pub fn put(&self, path: &str, object: Value) {
        let mut world = self.world();
        world.store(path, object);
    }

    /// The object at a path.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.world().objects.get(path).cloned()
    }

    /// Changes the object at a path, as another client would; does nothing where there is none.
    pub fn change(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut world = self.world();
        if let Some(mut object) = world.objects.get(path).cloned() {
            change(&mut object);
            world.store(path, object);
        }
    }

    /// Deletes the object at a path, as another client would: finalizers hold it.
    pub fn delete(&self, path: &str) {
        self.world().delete(path, &Value::Null);
    }

    /// Paths of all objects that contain `part`.
    pub fn paths(&self, part: &str) -> Vec<String> {
        self.world()
            .objects
            .keys()
            .filter(|path| path.contains(part))
            .cloned()
            .collect()
    }

    /// All writes so far, in order.
    pub fn writes(&self) -> Vec<Write> {
        self.world().writes.clone()
    }

    /// Forgets the writes so far.
    pub fn clear_writes(&self) {
        self.world().writes.clear();
    }

    /// Accepts `writes` more writes, answers the last of them with an error, and then nothing but errors: what a client
    /// sees that dies at that moment.
    pub fn crash_after(&self, writes: u32) {
        let mut world = self.world();
        world.until_crash = Some(writes);
    }

    /// Whether the crash came.
    pub fn crashed(&self) -> bool {
        self.world().crashed
    }

    /// Answers again, and crashes no more.
    pub fn heal(&self) {
        let mut world = self.world();
        world.crashed = false;
        world.until_crash = None;
    }

    /// Answers the next request whose path contains `part` with `code`.
    pub fn fail_next(&self, part: &str, code: u16) {
        self.world().faults.push((part.to_owned(), code));
    }
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), decode(value)))
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let hex: String = rest.by_ref().take(2).map(char::from).collect();
                bytes.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
            }
            b'+' => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl World {
    fn answer(&mut self, method: &Method, path: &str, query: &BTreeMap<String, String>, body: Value) -> Answer {
        if self.crashed {
            return refuse(500, "InternalError", "the client is dead");
        }
        if let Some(at) = self.faults.iter().position(|(part, _)| path.contains(part.as_str())) {
            let (_, code) = self.faults.remove(at);
            let reason = if code == 409 { "Conflict" } else { "InternalError" };
            return refuse(code, reason, "injected");
        }
        if method == Method::GET {
            return self.read(path, query);
        }
        let before = self.clock;
        let answer = match method.as_str() {
            "POST" => self.create(path, body),
            "PATCH" | "PUT" => self.patch(path, &body, query),
            "DELETE" => self.delete(path, &body),
            _ => refuse(405, "MethodNotAllowed", "method"),
        };
        self.writes.push(Write {
            method: method.to_string(),
            path: path.to_owned(),
            manager: query.get("fieldManager").cloned(),
            code: answer.0,
        });
        if self.clock > before
            && let Some(left) = &mut self.until_crash
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.crashed = true;
                return refuse(500, "InternalError", "the client died before it read the answer");
            }
        }
        answer
    }

    fn read(&self, path: &str, query: &BTreeMap<String, String>) -> Answer {
        if let Some(object) = self.objects.get(path) {
            return Answer(200, object.clone());
        }
        // Collections have plural names; an object that is missing has a longer path than its collection.
        let parts = path.trim_matches('/').split('/').count();
        let head = if path.starts_with("/apis/") { 3 } else { 2 };
        let is_collection = matches!(parts - head, 1 | 3);
        if !is_collection {
            return refuse(404, "NotFound", path);
        }
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(key, _)| {
                let of = |key: &str| {
                    let name = key.strip_prefix(path).and_then(|k| k.strip_prefix('/'));
                    name.is_some_and(|k| !k.contains('/'))
                };
                of(key) || of(&without_namespace(key))
            })
            .map(|(_, object)| object)
            .filter(|object| selects(query, object))
            .collect();
        Answer(
            200,
            json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": self.clock.to_string() }, "items": items }),
        )
    }

    fn create(&mut self, path: &str, body: Value) -> Answer {
        if path.ends_with("/token") {
            self.clock += 1;
            let mut answer = body;
            answer["status"] =
                json!({ "token": format!("token-{}", self.clock), "expirationTimestamp": "2030-01-01T00:00:00Z" });
            return Answer(201, answer);
        }
        let Some(name) = body["metadata"]["name"].as_str() else {
            return refuse(422, "Invalid", "no name");
        };
        let key = format!("{path}/{name}");
        if self.objects.contains_key(&key) {
            return refuse(409, "AlreadyExists", &key);
        }
        let mut object = body;
        object["metadata"]["uid"] = json!(format!("uid-{}", self.clock + 1));
        if object["status"].is_null() {
            object.as_object_mut().map(|o| o.remove("status"));
        }
        self.store(&key, object);
        Answer(201, self.objects[&key].clone())
    }

    fn patch(&mut self, path: &str, body: &Value, query: &BTreeMap<String, String>) -> Answer {
        let (key, status) = match path.strip_suffix("/status") {
            Some(key) => (key, true),
            None => (path, false),
        };
        let Some(old) = self.objects.get(key).cloned() else {
            if query.contains_key("fieldManager") && !status {
                let collection = key.rsplit_once('/').map_or("", |(c, _)| c).to_owned();
                return self.create(&collection, body.clone());
            }
            return refuse(404, "NotFound", key);
        };
        let asked = &body["metadata"]["resourceVersion"];
        if asked.is_string() && *asked != old["metadata"]["resourceVersion"] {
            return refuse(409, "Conflict", "the object has been modified");
        }
        let mut new = old.clone();
        if status {
            new["status"] = without_nulls(&body["status"]);
        } else {
            let mut body = body.clone();
            if let Some(fields) = body.as_object_mut() {
                fields.remove("status").filter(|_| !key.contains("/leases/"));
            }
            merge(&mut new, &body);
            if new["spec"] != old["spec"] {
                new["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(1) + 1);
            }
        }
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        if new != old {
            self.store(key, new.clone());
        }
        Answer(200, self.objects.get(key).cloned().unwrap_or(new))
    }

    fn delete(&mut self, path: &str, options: &Value) -> Answer {
        let Some(mut object) = self.objects.get(path).cloned() else {
            return refuse(404, "NotFound", path);
        };
        let uid = &options["preconditions"]["uid"];
        if uid.is_string() && *uid != object["metadata"]["uid"] {
            return refuse(409, "Conflict", "the uid differs");
        }
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            self.store(path, object.clone());
        }
        Answer(200, object)
    }

    /// Stores an object with a new version; one that is being deleted and has no finalizer goes.
    fn store(&mut self, key: &str, mut object: Value) {
        self.clock += 1;
        let held = object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|f| !f.is_empty());
        if !object["metadata"]["deletionTimestamp"].is_null() && !held {
            self.objects.remove(key);
            return;
        }
        let metadata = &mut object["metadata"];
        let namespace = key.split("/namespaces/").nth(1).and_then(|rest| rest.split_once('/'));
        if let Some((namespace, _)) = namespace {
            metadata["namespace"] = json!(namespace);
        }
        metadata["resourceVersion"] = json!(self.clock.to_string());
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{}", self.clock));
        }
        if metadata["generation"].is_null() {
            metadata["generation"] = json!(1);
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        self.objects.insert(key.to_owned(), object);
    }
}

/// The path of an object as if it had no namespace, so that a collection of all namespaces holds it.
fn without_namespace(key: &str) -> String {
    match key.split_once("/namespaces/") {
        Some((head, rest)) => rest
            .split_once('/')
            .map_or_else(String::new, |(_, rest)| format!("{head}/{rest}")),
        None => String::new(),
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| (k.clone(), without_nulls(v)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            target.as_object_mut().map(|t| t.remove(key));
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}

fn selects(query: &BTreeMap<String, String>, object: &Value) -> bool {
    let terms = |name: &str| {
        query
            .get(name)
            .map(|s| s.split(',').map(str::to_owned).collect())
            .unwrap_or_default()
    };
    let labels: Vec<String> = terms("labelSelector");
    let fields: Vec<String> = terms("fieldSelector");
    labels.iter().all(|term| match term.split_once('=') {
        Some((key, value)) => object["metadata"]["labels"][key] == json!(value),
        None => !object["metadata"]["labels"][term.as_str()].is_null(),
    }) && fields.iter().all(|term| {
        term.split_once('=').is_none_or(|(path, value)| {
            let pointer = format!("/{}", path.replace('.', "/"));
            object.pointer(&pointer) == Some(&json!(value))
        })
    })
}
