//! The HTTP side with a fake predictor: protocol, names, bounds.

use super::*;
use crate::error::{Result as WorkerResult, WorkerError};
use crate::node::table::{Description, Predictor, RawKind, Sample};
use crate::pipeline::{Dtype, Prepared, TensorSpec};
use crate::version::Answer;
use fleetune_crds::Task;
use fleetune_crds::common::Digest;
use serde_json::Value;

/// Answers with the first value of what it gets: of a text with its length, of tokens with the first of them.
struct First {
    raw: RawKind,
}

impl Predictor for First {
    fn description(&self) -> Description {
        let tensor = |name: &str, dtype, shape: &[usize]| TensorSpec {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        };
        let (task, inputs, labels) = match self.raw {
            RawKind::Image => (
                Task::Classification,
                vec![tensor("image", Dtype::Uint8, &[1, 1, 2, 3])],
                2,
            ),
            RawKind::Window => (Task::Regression, vec![tensor("window", Dtype::Fp32, &[1, 1, 2])], 0),
            RawKind::Text => (
                Task::Regression,
                ["input_ids", "attention_mask"]
                    .map(|name| tensor(name, Dtype::Int64, &[1, 3]))
                    .to_vec(),
                0,
            ),
        };
        Description {
            task,
            raw: self.raw,
            inputs,
            labels,
        }
    }

    fn prepare(&self, sample: Sample) -> WorkerResult<Prepared> {
        match sample {
            Sample::Image(bytes) if bytes == b"bad" => Err(WorkerError::bad("InvalidSample", "not a picture")),
            Sample::Image(bytes) => Prepared::pixels(1, 2, bytes),
            Sample::Window(values) => Prepared::window(1, 2, values),
            Sample::Text(text) => Prepared::tokens(vec![i64::try_from(text.len()).unwrap(); 3], vec![1; 3]),
            Sample::Prepared(prepared) => Ok(prepared),
        }
    }

    fn answer(&self, prepared: &Prepared) -> WorkerResult<Answer> {
        match prepared {
            Prepared::Pixels { data, .. } => Ok(Answer {
                probabilities: vec![f32::from(data[0]), 0.5],
                label: Some(format!("label{}", data[0])),
                value: None,
            }),
            Prepared::Window { data, .. } if data[0] < 0.0 => Err(WorkerError::bad("NotFinite", "broken")),
            Prepared::Window { data, .. } => Ok(Answer {
                probabilities: Vec::new(),
                label: None,
                value: Some(data[0]),
            }),
            Prepared::Tokens { ids, mask } => Ok(Answer {
                probabilities: Vec::new(),
                label: None,
                value: Some((ids[0] + mask[1]) as f32),
            }),
        }
    }
}

struct Site {
    base: String,
    serving: Arc<Serving>,
    ready_sender: watch::Sender<bool>,
}

async fn site() -> Site {
    let table = Arc::new(Table::default());
    for (key, raw) in [
        ("shop/shirts", RawKind::Image),
        ("shop/motor", RawKind::Window),
        ("lab/motor", RawKind::Window),
        ("shop/mail", RawKind::Text),
    ] {
        let served = Served::new(key, Digest::of(key.as_bytes()), Arc::new(First { raw }));
        table.put(served);
    }
    let (sender, ready) = watch::channel(true);
    let serving = Serving::new(table, Arc::new(Metrics::new("b").unwrap()), ready);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let app = router(serving.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let _ = rustls::crypto::ring::default_provider().install_default();
    Site {
        base,
        serving,
        ready_sender: sender,
    }
}

impl Site {
    async fn get(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("{}{path}", self.base)).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn post(&self, model: &str, body: Vec<u8>, header: Option<usize>) -> (u16, Option<usize>, Vec<u8>) {
        let url = format!("{}/v2/models/{model}/infer", self.base);
        let mut request = reqwest::Client::new().post(url).body(body);
        if let Some(header) = header {
            request = request.header(BINARY_HEADER, header.to_string());
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let header = answer
            .headers()
            .get(BINARY_HEADER)
            .map(|value| value.to_str().unwrap().parse().unwrap());
        (status, header, answer.bytes().await.unwrap().to_vec())
    }

    async fn ask(&self, model: &str, body: Value) -> (u16, Value) {
        let (status, _, bytes) = self.post(model, body.to_string().into_bytes(), None).await;
        (status, serde_json::from_slice(&bytes).unwrap())
    }
}

#[tokio::test]
async fn health_and_metadata() {
    let site = site().await;
    assert_eq!(site.get("/v2/health/live").await.0, 200);
    assert_eq!(site.get("/v2/health/ready").await.0, 200);
    site.ready_sender.send_replace(false);
    assert_eq!(site.get("/v2/health/ready").await.0, 503);
    assert!(site.get("/v2").await.1.contains("binary_tensor_data"));
    let (status, text) = site.get("/v2/models/shirts").await;
    let model: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, 200);
    assert_eq!(model["name"], "shop.shirts");
    assert_eq!(model["versions"], json!([Digest::of(b"shop/shirts")]));
    assert_eq!(
        model["inputs"][0],
        json!({"name": "image", "datatype": "BYTES", "shape": [-1]})
    );
    assert_eq!(
        model["inputs"][1],
        json!({"name": "image", "datatype": "UINT8", "shape": [-1, 1, 2, 3]})
    );
    assert_eq!(model["outputs"][0]["shape"], json!([-1, 2]));
    for (path, status) in [
        ("/v2/models/shop.motor/ready", 200),
        ("/v2/models/motor/ready", 404),
        ("/v2/models/other/ready", 404),
        ("/v2/models/shop.shirts/versions/sha256:00/ready", 404),
    ] {
        assert_eq!(site.get(path).await.0, status, "{path}");
    }
    assert!(site.get("/v2/models/motor").await.1.contains("lab.motor or shop.motor"));
}

#[tokio::test]
async fn raw_and_prepared_samples_in_json() {
    let site = site().await;
    let input = |name: &str, datatype: &str, shape: Value, data: Value| json!({"id": "7", "inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]});
    let (status, answer) = site
        .ask("shirts", input("image", "BYTES", json!([1]), json!(["BQAAAAAA"])))
        .await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        answer,
        json!({
            "model_name": "shop.shirts", "model_version": Digest::of(b"shop/shirts"), "id": "7",
            "outputs": [
                {"name": "probabilities", "datatype": "FP32", "shape": [1, 2], "data": [5.0, 0.5]},
                {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["label5"]},
            ],
        })
    );
    let nested = json!([[[[1, 0, 0], [0, 0, 0]]], [[[2, 0, 0], [0, 0, 0]]]]);
    let (status, answer) = site
        .ask("shirts", input("image", "UINT8", json!([2, 1, 2, 3]), nested))
        .await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["outputs"][1]["data"], json!(["label1", "label2"]));
    for shape in [json!([1, 2]), json!([1, 1, 2])] {
        let (status, answer) = site
            .ask("shop.motor", input("window", "FP32", shape, json!([1.5, 2])))
            .await;
        assert_eq!(
            (status, &answer["outputs"][0]["data"]),
            (200, &json!([1.5])),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn texts_come_as_they_are_or_as_tokens() {
    let site = site().await;
    let (_, text) = site.get("/v2/models/mail").await;
    let model: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        model["inputs"],
        json!([
            {"name": "text", "datatype": "BYTES", "shape": [-1]},
            {"name": "input_ids", "datatype": "INT64", "shape": [-1, 3]},
            {"name": "attention_mask", "datatype": "INT64", "shape": [-1, 3]},
        ])
    );
    let text = |shape: Value, data: Value| json!({"inputs": [{"name": "text", "datatype": "BYTES", "shape": shape, "data": data}]});
    let (status, answer) = site.ask("mail", text(json!([2]), json!(["caf\u{e9}", "tea"]))).await;
    assert_eq!(
        (status, &answer["outputs"][0]["data"]),
        (200, &json!([6.0, 4.0])),
        "{answer}"
    );
    let ids = json!({"name": "input_ids", "datatype": "INT64", "shape": [2, 3], "data": [[7, 8, 9], [20, 0, 0]]});
    let mask = json!({"name": "attention_mask", "datatype": "INT64", "shape": [2, 3], "data": [1, 1, 1, 1, 0, 0]});
    for inputs in [[&ids, &mask], [&mask, &ids]] {
        let (status, answer) = site.ask("mail", json!({"inputs": inputs})).await;
        assert_eq!(
            (status, &answer["outputs"][0]["data"]),
            (200, &json!([8.0, 20.0])),
            "{answer}"
        );
    }
    let head = json!({"inputs": [
        {"name": "input_ids", "datatype": "INT64", "shape": [1, 3], "parameters": {"binary_data_size": 24}},
        {"name": "attention_mask", "datatype": "INT64", "shape": [1, 3], "parameters": {"binary_data_size": 24}},
    ]})
    .to_string();
    let mut body = head.clone().into_bytes();
    body.extend([30_i64, 1, 2, 1, 1, 0].iter().flat_map(|v| v.to_le_bytes()));
    let (status, _, bytes) = site.post("mail", body, Some(head.len())).await;
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        (status, &answer["outputs"][0]["data"]),
        (200, &json!([31.0])),
        "{answer}"
    );
    let head =
        json!({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}]})
            .to_string();
    for (bytes, status) in [(b"ab", 200), (b"a\xff", 400)] {
        let mut body = head.clone().into_bytes();
        body.extend_from_slice(&2_u32.to_le_bytes());
        body.extend_from_slice(bytes);
        assert_eq!(site.post("mail", body, Some(head.len())).await.0, status, "{bytes:?}");
    }
    let with = |input: &Value, field: &str, value: Value| {
        let mut changed = input.clone();
        changed[field] = value;
        changed
    };
    for (inputs, text) in [
        (json!([ids]), "input_ids as INT64 with attention_mask as INT64"),
        (json!([mask, mask]), "the model takes text as BYTES"),
        (json!([]), "not nothing"),
        (
            json!([ids, with(&mask, "shape", json!([3, 3]))]),
            "9 elements, the data 6",
        ),
        (
            json!([ids, {"name": "attention_mask", "datatype": "INT64", "shape": [3], "data": [1, 1, 1]}]),
            "has 6 elements",
        ),
        (
            json!([ids, with(&mask, "data", json!([1, 1, 2, 1, 0, 0]))]),
            "the mask holds 2",
        ),
        (
            json!([ids, with(&mask, "data", json!([0, 0, 0, 1, 0, 0]))]),
            "leaves no token",
        ),
        (
            json!([with(&ids, "data", json!([1.5, 0, 0, 0, 0, 0])), mask]),
            "not whole",
        ),
        (json!([with(&ids, "shape", json!([2, 4])), mask]), "takes shape [-1, 3]"),
        (
            json!([{"name": "text", "datatype": "BYTES", "shape": [1], "data": [7]}]),
            "comes as text",
        ),
    ] {
        let (status, answer) = site.ask("mail", json!({ "inputs": inputs })).await;
        assert_eq!(status, 400, "{inputs}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(text), "{inputs}: {answer}");
    }
}

#[tokio::test]
async fn binary_tensors_both_ways() {
    let site = site().await;
    let head = json!({
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 10}}],
        "outputs": [{"name": "label", "parameters": {"binary_data": true}}],
    })
    .to_string();
    let mut body = head.clone().into_bytes();
    body.extend_from_slice(&6_u32.to_le_bytes());
    body.extend_from_slice(&[9, 0, 0, 0, 0, 0]);
    let (status, header, bytes) = site.post("shirts", body, Some(head.len())).await;
    assert_eq!(status, 200);
    let (text, binary) = bytes.split_at(header.unwrap());
    let answer: Value = serde_json::from_slice(text).unwrap();
    assert_eq!(answer["outputs"][0]["parameters"]["binary_data_size"], binary.len());
    assert_eq!(&binary[4..], b"label9");
    let head = json!({
        "inputs": [{"name": "window", "datatype": "FP32", "shape": [1, 1, 2], "parameters": {"binary_data_size": 8}}],
        "parameters": {"binary_data_output": true},
    })
    .to_string();
    let mut body = head.clone().into_bytes();
    body.extend_from_slice(&2.5_f32.to_le_bytes());
    body.extend_from_slice(&0_f32.to_le_bytes());
    let (status, header, bytes) = site.post("lab.motor", body, Some(head.len())).await;
    assert_eq!(status, 200);
    assert_eq!(bytes[header.unwrap()..], 2.5_f32.to_le_bytes());
}

#[tokio::test]
#[allow(clippy::too_many_lines)]
async fn bad_requests_are_told_why() {
    let site = site().await;
    let one = |name: &str, datatype: &str, shape: Value, data: Value| json!({"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]});
    let binary = |size: u64| json!({"inputs": [{"name": "window", "datatype": "FP32", "shape": [1, 1, 2], "parameters": {"binary_data_size": size}}]});
    let cases = [
        ("shirts", json!({}), 400, "inputs"),
        ("shirts", json!({"inputs": []}), 400, "one input"),
        (
            "shirts",
            one("picture", "BYTES", json!([1]), json!(["AA=="])),
            400,
            "image as BYTES",
        ),
        ("shirts", one("image", "FP32", json!([1]), json!([1])), 400, "UINT8"),
        (
            "shirts",
            one("image", "BYTES", json!([2]), json!(["AA=="])),
            400,
            "2 elements, the data 1",
        ),
        ("shirts", one("image", "BYTES", json!([1]), json!(["?"])), 400, "base64"),
        (
            "shirts",
            one("image", "BYTES", json!([0]), json!([])),
            400,
            "no elements",
        ),
        (
            "shirts",
            one("image", "BYTES", json!([1]), json!(["YmFk"])),
            400,
            "not a picture",
        ),
        (
            "shirts",
            one("image", "UINT8", json!([1, 1, 2, 3]), json!([256, 0, 0, 0, 0, 0])),
            400,
            "0 to 255",
        ),
        (
            "shirts",
            one("image", "UINT8", json!([1, 2, 2, 3]), json!([])),
            400,
            "shape",
        ),
        (
            "shop.motor",
            one("window", "FP32", json!([1, 1, 2]), json!([1])),
            400,
            "2 elements, the data 1",
        ),
        (
            "shop.motor",
            one("window", "FP32", json!([1, 1, 2]), json!(["a", "b"])),
            400,
            "numbers",
        ),
        (
            "shop.motor",
            one("window", "FP32", json!([u64::MAX, u64::MAX]), json!([])),
            400,
            "too many",
        ),
        (
            "shop.motor",
            one("window", "FP32", json!([1, 1, 2]), json!([-1, 0])),
            500,
            "broken",
        ),
        ("shop.motor", binary(9), 400, "0 bytes are left"),
        (
            "motor",
            one("window", "FP32", json!([1, 1, 2]), json!([1, 1])),
            404,
            "not unique",
        ),
    ];
    for (model, body, wanted, text) in cases {
        let (status, answer) = site.ask(model, body.clone()).await;
        assert_eq!(status, wanted, "{body}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(text), "{body}: {answer}");
    }
    let mut outputs = one("window", "FP32", json!([1, 1, 2]), json!([1, 1]));
    outputs["outputs"] = json!([{"name": "label"}]);
    assert_eq!(site.ask("shop.motor", outputs).await.0, 400);
    let data = vec![0; 2 * 65];
    let many = one("window", "FP32", json!([65, 1, 2]), json!(data));
    assert!(
        site.ask("shop.motor", many).await.1["error"]
            .as_str()
            .unwrap()
            .contains("64 samples")
    );
    let (status, _, _) = site.post("shop.motor", b"{}".to_vec(), Some(99)).await;
    assert_eq!(status, 400);
    let soak = site.serving.table.get("shop/motor").unwrap().soak();
    assert_eq!(
        (soak.requests, soak.errors),
        (1, 1),
        "what the client did wrong is not the version's"
    );
    assert!(
        site.get("/metrics")
            .await
            .1
            .contains(r#"fleetune_node_requests_total{code="400",model="shop/motor"}"#)
    );
}

#[tokio::test]
async fn bodies_and_queues_are_bounded() {
    let site = site().await;
    let (status, _, bytes) = site.post("shirts", vec![b' '; MAX_BODY + 1], None).await;
    assert_eq!(status, 413, "{}", String::from_utf8_lossy(&bytes));
    let held = site
        .serving
        .waiting
        .acquire_many(site.serving.waiting.available_permits() as u32)
        .await
        .unwrap();
    assert_eq!(site.post("shirts", b"{}".to_vec(), None).await.0, 429);
    drop(held);
    let held = site.serving.held.acquire_many(MAX_HELD_KIB as u32).await.unwrap();
    assert_eq!(site.post("shirts", b"{}".to_vec(), None).await.0, 429);
    drop(held);
    assert_eq!(site.post("shirts", b"{}".to_vec(), None).await.0, 400);
}
