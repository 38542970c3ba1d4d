//! Switches under load.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn switches_lose_and_mix_no_answer() {
    let site = Site::new().await;
    let (one, two) = (site.publish("1").await, site.publish("2").await);
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let serving = Serving::new(
        node.shared.table.clone(),
        node.shared.metrics.clone(),
        node.shared.ready.subscribe(),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v2/models/shop.shirts/infer", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, router(serving)).await });
    let done = Arc::new(AtomicUsize::new(0));
    let asked = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (url, done, asked) = (url.clone(), done.clone(), asked.clone());
            let versions = [(one.digest.to_string(), 1.0), (two.digest.to_string(), 2.0)];
            tokio::spawn(async move {
                let client = reqwest::Client::new();
                let body =
                    r#"{"inputs": [{"name": "window", "datatype": "FP32", "shape": [2, 1, 2], "data": [1, 2, 3, 4]}]}"#;
                while done.load(Ordering::SeqCst) == 0 {
                    let answer = client.post(&url).body(body).send().await.unwrap();
                    assert_eq!(answer.status(), 200);
                    let text = answer.text().await.unwrap();
                    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
                    let version = answer["model_version"].as_str().unwrap();
                    let value = versions.iter().find(|(digest, _)| digest == version).unwrap().1;
                    assert_eq!(answer["outputs"][0]["data"], serde_json::json!([value, value]), "mixed");
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for epoch in 2..12 {
        let source = if epoch % 2 == 0 { &two } else { &one };
        node.order(order(epoch, Some(source), None, "0s"));
        node.until("switched", |s| s.epoch == epoch && s.state == VersionState::Proven)
            .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    done.store(1, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    assert!(asked.load(Ordering::SeqCst) > 100);
    server.abort();
    node.stop().await;
}
