//! `kvferry sources` as a person at a shell uses it: safetensors files published on one host come back
//! on another.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually, run};

/// A file of tensors, by name: dtype, shape, bytes.
fn write(path: &Path, tensors: &[(&str, Vec<u64>, Vec<u8>)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    for (name, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": offsets});
        header.insert((*name).into(), entry);
        data.extend_from_slice(bytes);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    std::fs::write(path, file).unwrap();
}

fn read(path: &Path) -> BTreeMap<String, (Value, Vec<u8>)> {
    let file = std::fs::read(path).unwrap();
    let (length, rest) = file.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&rest[..length]).unwrap();
    let data = &rest[length..];
    let tensor = |(name, entry): (String, Value)| {
        let offset = |n: usize| entry["data_offsets"][n].as_u64().unwrap() as usize;
        let bytes = data[offset(0)..offset(1)].to_vec();
        (name, (entry["shape"].clone(), bytes))
    };
    header
        .into_iter()
        .filter(|(name, _)| !name.starts_with("__"))
        .map(tensor)
        .collect()
}

fn bytes(seed: u32, count: u32) -> Vec<u8> {
    (0..2 * count)
        .map(|n| (n ^ seed).wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect()
}

struct Shell {
    cluster: Cluster,
    coordinator: String,
}

impl Shell {
    async fn start() -> Self {
        let mut cluster = Cluster::start().await;
        cluster.agent("a", &["--transport", "tcp"]).await;
        cluster.agent("b", &["--transport", "tcp"]).await;
        let coordinator = format!("http://{}", cluster.coordinator_address);
        Self {
            cluster,
            coordinator,
        }
    }

    async fn say(&self, node: &str, line: &str) -> (i32, String) {
        let socket = self.cluster.socket(node).display().to_string();
        let mut words = vec!["sources"];
        words.extend(line.split_whitespace());
        words.extend(["--socket", &socket, "--coordinator", &self.coordinator]);
        let (code, out, error) = run(&words, self.cluster.dir.path()).await;
        (code, out + &error)
    }

    async fn json(&self, node: &str, line: &str) -> Value {
        let (code, out) = self.say(node, &format!("{line} --json")).await;
        assert_eq!(code, 0, "{out}");
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    fn exists(&self, name: &str) -> bool {
        self.cluster.dir.path().join(name).exists()
    }

    async fn regions(&self, node: &str) -> usize {
        let engine = crate::engine::Engine::connect(&self.cluster.socket(node)).await;
        engine.stats().await.regions.len()
    }
}

const PUBLISH: &str = "publish one.safetensors two.safetensors --name org/m --chunk-bytes 16KiB";

#[tokio::test]
async fn safetensors_published_on_one_host_come_back_on_another() {
    let shell = Shell::start().await;
    let dir = shell.cluster.dir.path();
    let one = [
        ("layer.0.weight", vec![100, 300], bytes(1, 30_000)),
        ("layer.0.bias", vec![7], bytes(2, 7)),
        ("scalar", vec![], bytes(3, 1)),
    ];
    let two = [
        ("layer.1.weight", vec![64, 512], bytes(4, 32_768)),
        ("empty", vec![0, 9], Vec::new()),
    ];
    write(&dir.join("one.safetensors"), &one);
    write(&dir.join("two.safetensors"), &two);
    let published = shell.json("a", PUBLISH).await;
    let id = published["source"].as_str().unwrap();
    assert_eq!(published["tensors"], 5);

    let listed = shell.json("a", "list --name org/").await;
    assert_eq!(listed[0]["source"], id);
    assert_eq!(
        (&listed[0]["state"], &listed[0]["tensors"]),
        (&json!("ready"), &json!(5))
    );
    let status = shell.json("b", &format!("status {id}")).await;
    assert_eq!(status["workers"][0]["node"], "a");
    let got = shell.json("b", &format!("get {id}")).await;
    assert_eq!(got["tensors"].as_array().unwrap().len(), 5);

    let pulled = shell
        .json("b", &format!("pull {id} -o all.safetensors"))
        .await;
    assert_eq!(pulled["sources"]["a"], 4, "{pulled}: all but the empty one");
    let came = read(&dir.join("all.safetensors"));
    for (name, shape, bytes) in one.iter().chain(&two) {
        assert_eq!(came[*name], (json!(shape), bytes.clone()), "{name}");
    }
    assert_eq!(came.len(), 5);
    shell
        .json(
            "b",
            &format!("pull {id} -o some.safetensors --prefix layer.0 --tensor scalar"),
        )
        .await;
    let came: Vec<_> = read(&dir.join("some.safetensors")).into_keys().collect();
    assert_eq!(came, ["layer.0.bias", "layer.0.weight", "scalar"]);
    let (code, _) = shell
        .say(
            "b",
            &format!("pull {id} -o no.safetensors --tensor nothing"),
        )
        .await;
    assert_eq!((code, shell.exists("no.safetensors")), (1, false));
    shell
        .say("b", &format!("pull {id} -o no.safetensors --discard"))
        .await;
    assert_eq!(shell.regions("b").await, 0, "nothing is left behind");

    let (code, out) = shell.say("b", &format!("remove {id}")).await;
    assert_eq!(code, 0, "{out}");
    eventually("its memory is given back", || async {
        shell.regions("a").await == 0
    })
    .await;
    let again = shell.json("a", PUBLISH).await;
    assert_eq!(again["source"], id, "the same content is the same source");
    let (code, _) = shell.say("a", &format!("withdraw {id}")).await;
    assert_eq!((code, shell.regions("a").await), (0, 0));
}

#[tokio::test]
async fn an_interrupted_pull_goes_on() {
    let shell = Shell::start().await;
    let dir = shell.cluster.dir.path();
    let tensors = [("w", vec![500, 100], bytes(9, 50_000))];
    write(&dir.join("one.safetensors"), &tensors);
    write(&dir.join("two.safetensors"), &[("v", vec![2], bytes(8, 2))]);
    let published = shell.json("a", PUBLISH).await;
    let pull = format!("pull {} -o out", published["source"].as_str().unwrap());

    shell.cluster.agent_process("a").signal("STOP");
    let (code, out) = shell.say("b", &format!("{pull} --timeout-ms 6000")).await;
    assert!(code == 1 || code == 3, "{code}: {out}");
    assert!(
        !shell.exists("out") && shell.exists("out.kvf-part.json"),
        "{out}"
    );
    assert_eq!(shell.regions("b").await, 1);
    let (code, out) = shell
        .say("b", &format!("pull {} -o out", "0".repeat(32)))
        .await;
    assert_eq!(code, 1, "another pull's state is not taken: {out}");
    shell.cluster.agent_process("a").signal("CONT");
    let pulled = shell.json("b", &pull).await;
    assert_eq!(pulled["failed"], json!([]));
    assert_eq!(read(&dir.join("out"))["w"].1, tensors[0].2);
    assert!(!shell.exists("out.kvf-part") && !shell.exists("out.kvf-part.json"));
    assert_eq!(shell.regions("b").await, 0);
}

#[tokio::test]
async fn files_that_are_none_are_refused_by_name() {
    let shell = Shell::start().await;
    let dir = shell.cluster.dir.path();
    std::fs::write(dir.join("text"), "not a header at all").unwrap();
    let (code, out) = shell.say("a", "publish text --name m").await;
    assert_eq!(code, 1);
    assert!(out.contains("text is no safetensors file"), "{out}");
    let (code, out) = shell.say("a", "status zz").await;
    assert_eq!(code, 2, "{out}");
    let (code, out) = shell.say("a", &format!("status {}", "0".repeat(32))).await;
    assert_eq!(code, 1);
    assert!(out.contains("there is no source"), "{out}");
    assert_eq!(shell.regions("a").await, 0);
}
