//! From a URL to the object store that it names.

use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::backend::{Backend, Conditions};
use super::credentials;
use super::error::RemoteError;
use super::names::Names;
use super::settings::RemoteSettings;
use super::text;
use crate::error::Result;
use crate::fs::read;

/// A directory's lock of those who change pointers; the name is none of a template or an object.
const LOCK: &str = ".lock";

/// How long a remote may keep us waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Nothing else can be done.
    Long,
    /// There is another way: to build.
    Short,
}

impl Patience {
    fn retry(self) -> RetryConfig {
        let (max_retries, seconds) = match self {
            Patience::Long => (8, 90),
            Patience::Short => (3, 10),
        };
        let backoff = BackoffConfig { max_backoff: Duration::from_secs(10), ..BackoffConfig::default() };
        RetryConfig { backoff, max_retries, retry_timeout: Duration::from_secs(seconds) }
    }

    fn whole_file(self) -> Duration {
        match self {
            Patience::Long => Duration::from_secs(3600),
            Patience::Short => Duration::from_secs(600),
        }
    }

    fn client(self, allow_http: bool) -> ClientOptions {
        let (connect, whole) = match self {
            Patience::Long => (10, 120),
            Patience::Short => (3, 30),
        };
        ClientOptions::new()
            .with_allow_http(allow_http)
            .with_connect_timeout(Duration::from_secs(connect))
            .with_timeout(Duration::from_secs(whole))
            .with_read_timeout(Duration::from_secs(30))
    }
}

/// Why a remote can't be opened. Its URL is shown without what is secret in it, and so is what is said of it.
fn bad(settings: &RemoteSettings, problem: impl AsRef<str>) -> RemoteError {
    RemoteError::BadUrl { url: text::url(&settings.url), problem: text::plain(problem.as_ref()) }
}

/// Opens what the settings name; nothing is asked of the server yet.
pub(super) fn open(settings: &RemoteSettings, patience: Patience) -> Result<Backend> {
    if settings.url.is_empty() {
        return Err(bad(settings, "it is empty; name s3://BUCKET/PREFIX, or a directory").into());
    }
    for given in [Some(&settings.url), settings.endpoint.as_ref()].into_iter().flatten() {
        check_secrets(given)?;
    }
    let bad = |problem: String| bad(settings, problem);
    if let Some(dir) = local_dir(&settings.url) {
        return directory(settings, &dir);
    }
    let url =
        Url::parse(&settings.url).map_err(|error| bad(format!("it is neither a directory nor a URL: {error}")))?;
    let (scheme, prefix) = ObjectStoreScheme::parse(&url).map_err(|error| bad(error.to_string()))?;
    let (objects, prefix) = match scheme {
        ObjectStoreScheme::AmazonS3 => (s3(settings, patience)?, prefix),
        ObjectStoreScheme::GoogleCloudStorage => {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(&settings.url).with_retry(patience.retry());
            (share(builder.with_client_options(patience.client(settings.allow_http)).build(), bad)?, prefix)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let builder = MicrosoftAzureBuilder::from_env().with_url(&settings.url).with_retry(patience.retry());
            (share(builder.with_client_options(patience.client(settings.allow_http)).build(), bad)?, prefix)
        }
        ObjectStoreScheme::Http => {
            check_http(settings, &settings.url)?;
            // A server that sends whole files only sends large ones for a long time.
            let client = patience.client(settings.allow_http).with_timeout(patience.whole_file());
            let builder = HttpBuilder::new().with_url(&settings.url).with_retry(patience.retry());
            (share(builder.with_client_options(client).build(), bad)?, Path::default())
        }
        _ => {
            return Err(bad(
                "no object store is reached by such a URL; use s3://, gs://, az://, https:// or a directory".into(),
            )
            .into());
        }
    };
    let conditions = match scheme {
        ObjectStoreScheme::Http => Conditions::ReadOnly,
        _ if settings.single_writer => Conditions::SingleWriter,
        _ => Conditions::Server,
    };
    Backend::new(settings.url.clone(), Names::below(prefix), objects, conditions)
}

/// The directory that a URL names, if it names one.
pub(super) fn local_dir(url: &str) -> Option<Utf8PathBuf> {
    match url.strip_prefix("file://") {
        Some(path) => Some(path.into()),
        None if !url.contains("://") => Some(url.into()),
        None => None,
    }
}

fn directory(settings: &RemoteSettings, dir: &Utf8Path) -> Result<Backend> {
    let bad = |problem: &str| bad(settings, problem);
    match read::metadata_if_there(dir)? {
        Some(found) if found.is_dir() || found.is_symlink() => {}
        Some(_) => return Err(bad("it is not a directory").into()),
        None => return Err(bad("there is no such directory; make it, or mount it").into()),
    }
    let objects = LocalFileSystem::new_with_prefix(dir).map_err(|error| bad(&error.to_string()))?;
    let objects = Arc::new(objects.with_fsync(true));
    let lock = read::canonical(dir)?.join(LOCK);
    Backend::new(settings.url.clone(), Names::below(Path::default()), objects, Conditions::Lock(lock))
}

fn s3(settings: &RemoteSettings, patience: Patience) -> Result<Arc<dyn ObjectStore>> {
    let bad = |problem: String| bad(settings, problem);
    let mut builder = AmazonS3Builder::from_env().with_url(&settings.url).with_retry(patience.retry());
    let mut allow_http = settings.allow_http;
    if let Some(endpoint) = &settings.endpoint {
        check_http(settings, endpoint)?;
        builder = builder.with_endpoint(endpoint);
    } else {
        for key in [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint] {
            builder.get_config_value(&key).map_or(Ok(()), |endpoint| check_secrets(&endpoint))?;
        }
        // The environment that names a server without encryption must allow it itself.
        let allowed = builder.get_config_value(&"aws_allow_http".parse().expect("a key of S3")).unwrap_or_default();
        allow_http |= ["1", "true", "on", "yes", "y"].contains(&allowed.to_ascii_lowercase().as_str());
    }
    // The server looks whether it got what was sent.
    if builder.get_config_value(&AmazonS3ConfigKey::Checksum).is_none() {
        builder = builder.with_checksum_algorithm(Checksum::SHA256);
    }
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    if let Some(found) = credentials::of_aws()? {
        builder = builder.with_access_key_id(found.key_id).with_secret_access_key(found.secret);
        if let Some(token) = found.token {
            builder = builder.with_token(token);
        }
    }
    share(builder.with_client_options(patience.client(allow_http)).build(), bad)
}

/// What stands in a URL is kept in the configuration, and shown: nothing secret may be in it.
fn check_secrets(given: &str) -> Result<()> {
    // The name of a directory that is there is no slip.
    let is_dir = || local_dir(given).is_some_and(|dir| read::exists(&dir).unwrap_or(false));
    if !text::holds_secrets(given) || is_dir() {
        return Ok(());
    }
    let problem = "there is a user, a password or a query in it; credentials come from the environment";
    Err(RemoteError::BadUrl { url: text::url(given), problem: problem.to_owned() }.into())
}

fn check_http(settings: &RemoteSettings, url: &str) -> Result<()> {
    if settings.allow_http || !url.to_ascii_lowercase().starts_with("http://") {
        return Ok(());
    }
    let problem =
        "everybody on the way could read and change what goes over http://; say --allow-http if it may".to_owned();
    Err(RemoteError::BadUrl { url: url.to_owned(), problem }.into())
}

fn share<T: ObjectStore>(
    built: object_store::Result<T>,
    bad: impl Fn(String) -> RemoteError,
) -> Result<Arc<dyn ObjectStore>> {
    Ok(Arc::new(built.map_err(|error| bad(error.to_string()))?))
}
