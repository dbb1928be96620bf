//! Push and pull of an image, beside the plain transfer of the same packed bytes: `cargo bench --bench remote`.
//!
//! The remote is a directory below `$TMPDIR`, or what `$BENCH_REMOTE` names, such as `s3://bucket/bench`, with the server
//! and the credentials in the usual environment (`AWS_ENDPOINT`, `AWS_ALLOW_HTTP`, `AWS_ACCESS_KEY_ID`, …). The plain
//! transfer sends and fetches the same objects in parts of 8 MiB, four at a time.

// Made for another benchmark, which needs more of it.
#[allow(dead_code)]
#[path = "../image/made.rs"]
mod made;
#[path = "../support/plain.rs"]
mod plain;
#[path = "../collect/program.rs"]
mod program;
#[path = "../support/random.rs"]
mod random;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use camino::Utf8Path;
use futures_util::StreamExt;
use futures_util::stream;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};

use made::Made;
use plain::{median, quantile, ratios, temporary, text, time};

const PART: usize = 8 * 1024 * 1024;
const IN_FLIGHT: usize = 4;
const ROUNDS: usize = 5;

/// A remote, as its plain object store.
struct Plain {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    runtime: tokio::runtime::Runtime,
}

impl Plain {
    fn open(url: &str) -> Plain {
        let url = if url.contains("://") { url.to_owned() } else { format!("file://{url}") };
        let environment = std::env::vars().map(|(name, value)| (name.to_ascii_lowercase(), value));
        let (objects, prefix) = object_store::parse_url_opts(&url.parse().unwrap(), environment).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Plain { objects: objects.into(), prefix, runtime }
    }

    /// The packed files that a push made.
    fn blobs(&self, below: &str) -> Vec<Bytes> {
        self.runtime.block_on(async {
            let place = self.prefix.clone().join(below).join("blobs");
            let listed: Vec<_> = self.objects.list(Some(&place)).collect().await;
            let mut blobs = Vec::new();
            for meta in listed {
                blobs.push(self.objects.get(&meta.unwrap().location).await.unwrap().bytes().await.unwrap());
            }
            blobs
        })
    }

    fn path(&self, round: usize, number: usize) -> Path {
        self.prefix.clone().join(format!("plain-{round}")).join(number.to_string())
    }

    fn upload(&self, round: usize, blobs: &[Bytes]) {
        self.runtime.block_on(async {
            for (number, blob) in blobs.iter().enumerate() {
                let upload = self.objects.put_multipart(&self.path(round, number)).await.unwrap();
                let mut write = WriteMultipart::new_with_chunk_size(upload, PART);
                for at in (0..blob.len()).step_by(PART) {
                    write.wait_for_capacity(IN_FLIGHT).await.unwrap();
                    write.put(blob.slice(at..blob.len().min(at + PART)));
                }
                write.finish().await.unwrap();
            }
        });
    }

    fn download(&self, round: usize, blobs: &[Bytes]) {
        self.runtime.block_on(async {
            for (number, blob) in blobs.iter().enumerate() {
                let (path, len) = (self.path(round, number), blob.len());
                let parts = (0..len).step_by(PART).map(|at| at as u64..len.min(at + PART) as u64);
                let fetch = |range| {
                    let (objects, path) = (self.objects.clone(), path.clone());
                    async move { objects.get_range(&path, range).await.unwrap().len() }
                };
                let fetched: usize =
                    stream::iter(parts).map(fetch).buffered(IN_FLIGHT).collect::<Vec<_>>().await.iter().sum();
                assert_eq!(fetched, len);
            }
        });
    }
}

/// The times and the most memory of our side, and the times of the plain one.
#[derive(Default)]
struct Row {
    ours: Vec<Duration>,
    plain: Vec<Duration>,
    memory: u64,
}

fn main() {
    let (_temporary, dir) = temporary();
    let hub = std::env::var("BENCH_REMOTE").unwrap_or_else(|_| {
        std::fs::create_dir(dir.join("hub")).unwrap();
        dir.join("hub").into_string()
    });
    let mib = std::env::var("BENCH_MIB").map_or(1024, |mib| mib.parse().unwrap());
    let made = Made::new(&dir, mib, ROUNDS);
    let plain = Plain::open(&hub);
    let run = std::process::id();
    let (mut push, mut pull) = (Row::default(), Row::default());
    let mut packed = 0;
    for round in 0..ROUNDS {
        let below = format!("run-{run}-{round}");
        let remote = format!("{hub}/{below}");
        if !hub.contains("://") {
            std::fs::create_dir(&remote).unwrap();
        }
        measure(&mut push, &made.store(), &["push", "web", "--remote", &remote]);
        let blobs = plain.blobs(&below);
        packed = blobs.iter().map(Bytes::len).sum();
        push.plain.push(time(|| plain.upload(round, &blobs)).1);
        let target = dir.join(format!("pulled-{round}"));
        measure(&mut pull, &target, &["pull", "web", "--remote", &remote]);
        pull.plain.push(time(|| plain.download(round, &blobs)).1);
        std::fs::remove_dir_all(target).unwrap();
    }
    println!("An image of {mib} MiB with a kernel, {} MiB as it is packed; a remote at {}.", packed >> 20, kind(&hub));
    println!("Medians by turns; the middle half of the ratios; the most memory of the program.\n");
    println!("{:22} {:>9} {:>9} {:>6} {:>15} {:>10}", "", "ours", "plain", "ratio", "middle half", "memory");
    for (name, row) in [("push, plain upload", push), ("pull, plain download", pull)] {
        let ratios = ratios(&row.ours, &row.plain);
        println!(
            "{name:22} {:>9} {:>9} {:>6.2} {:>15} {:>6.1} MiB",
            text(median(&row.ours)),
            text(median(&row.plain)),
            quantile(&ratios, 0.5),
            format!("{:.2} – {:.2}", quantile(&ratios, 0.25), quantile(&ratios, 0.75)),
            row.memory as f64 / (1 << 20) as f64
        );
    }
}

fn measure(row: &mut Row, store: &Utf8Path, words: &[&str]) {
    let took = program::run(store, words);
    row.ours.push(took.time);
    row.memory = row.memory.max(took.memory.unwrap_or_default());
}

/// Where the remote is, without its name.
fn kind(hub: &str) -> &str {
    hub.split_once("://").map_or("a directory", |(scheme, _)| scheme)
}
