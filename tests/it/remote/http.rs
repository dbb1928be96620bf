//! A plain web server before the directory of a remote: some send parts of files, some send whole files only.

use std::fs;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::{
    BuildInputs, Error, ErrorKind, ImportOptions, Match, PublishOptions, Remote, RemoteError, RemoteSettings,
};

use super::wire::read_request;
use super::{host, publish, pull, push};
use crate::support::{Place, assert_error, assert_right, bytes, id, inputs};

/// Serves a directory until the process ends.
pub fn serve(dir: Utf8PathBuf, sends_parts: bool) -> Remote {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let dir = dir.clone();
            // A client that goes is no error.
            std::thread::spawn(move || drop(answer_all(client, &dir, sends_parts)));
        }
    });
    let refused = Remote::open(&RemoteSettings::at(&url));
    assert_error(refused, ErrorKind::Invalid, &["http://", "--allow-http"]);
    Remote::open(&RemoteSettings::at(&url).allow_http(true)).unwrap()
}

fn answer_all(mut client: TcpStream, dir: &Utf8Path, sends_parts: bool) -> io::Result<()> {
    loop {
        let request = String::from_utf8(read_request(&mut client)?).unwrap();
        let mut words = request.split_whitespace();
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let file = match method {
            "GET" | "HEAD" => fs::read(dir.join(path.trim_start_matches('/'))).ok(),
            _ => {
                client.write_all(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n")?;
                continue;
            }
        };
        let Some(file) = file else {
            client.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let range = part_of(&request, file.len()).filter(|_| sends_parts);
        let (status, part) = match &range {
            Some(range) => ("206 Partial Content", &file[range.clone()]),
            None => ("200 OK", &file[..]),
        };
        let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", part.len());
        head.push_str("Last-Modified: Thu, 26 Nov 2026 10:00:00 GMT\r\n");
        if let Some(range) = range {
            head.push_str(&format!("Content-Range: bytes {}-{}/{}\r\n", range.start, range.end - 1, file.len()));
        }
        client.write_all(format!("{head}\r\n").as_bytes())?;
        if method == "GET" {
            client.write_all(part)?;
        }
    }
}

/// The part of a file that a request asks for.
fn part_of(request: &str, len: usize) -> Option<std::ops::Range<usize>> {
    let lines = request.to_ascii_lowercase();
    let range = lines.lines().find_map(|line| line.strip_prefix("range: bytes="))?.trim().to_owned();
    let (start, end) = range.split_once('-')?;
    Some(start.parse().ok()?..end.parse::<usize>().ok()?.min(len - 1) + 1)
}

/// The directory of a remote with what the first host has.
fn pushed(place: &Place) -> Utf8PathBuf {
    let hub = place.join("hub");
    fs::create_dir(&hub).unwrap();
    let a = host(place, "a");
    let files = place.image("keyed", "keyed");
    fs::write(files.join("rootfs.ext4"), bytes("keyed", 3 << 20)).unwrap();
    let keyed = ImportOptions::default().inputs(inputs("lock"));
    let keyed = a.publish_dir_with(&id("keyed"), &files, &keyed, &mut ()).unwrap().revision;
    let remote = Remote::open(&RemoteSettings::at(hub.as_str())).unwrap();
    push(&a, &remote, &publish(place, &a, "one")).unwrap();
    push(&a, &remote, &keyed).unwrap();
    hub
}

#[test]
fn what_a_web_server_has_is_pulled_and_looked_up() {
    for sends_parts in [true, false] {
        let place = Place::in_memory();
        let remote = serve(pushed(&place), sends_parts);
        let b = host(&place, "b");
        let pulled = pull(&b, &remote, None).unwrap();
        assert_right(&pulled.revision);
        assert_eq!(pulled.revision.contents(), host(&place, "a").current(&id("web")).unwrap().contents());
        assert!(b.lookup(None, &inputs("lock")).unwrap().is_none());
        let ask = |inputs: &BuildInputs| {
            b.lookup_remote(&remote, None, inputs, Match::Sources, &PublishOptions::default(), &mut ()).unwrap()
        };
        assert_right(&ask(&inputs("lock")).expect("it was built from this"));
        assert!(ask(&inputs("another")).is_none());
        let missing = b.pull(&remote, &id("other"), None, &Default::default(), &mut ());
        assert_error(missing, ErrorKind::NotFound, &["has no template other"]);
    }
}

#[test]
fn a_web_server_is_only_read_and_tells_nobody_what_it_has() {
    let place = Place::in_memory();
    let remote = serve(pushed(&place), true);
    let refused = push(&host(&place, "a"), &remote, &host(&place, "a").current(&id("web")).unwrap());
    assert!(matches!(refused, Err(Error::Remote(RemoteError::ReadOnly { .. }))), "{refused:?}");
    assert_error(remote.templates(), ErrorKind::Refused, &["does not say what it has"]);
    assert_error(remote.verify(true, &mut ()), ErrorKind::Refused, &["does not say what it has"]);
}

#[test]
fn what_a_web_server_has_damaged_is_refused() {
    for sends_parts in [true, false] {
        let place = Place::in_memory();
        let hub = pushed(&place);
        let blobs = walkdir::WalkDir::new(hub.join("blobs")).into_iter().map(Result::unwrap);
        let blobs = blobs.filter(|entry| entry.file_type().is_file()).map(|entry| entry.into_path());
        let largest = blobs.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
        let whole = fs::read(&largest).unwrap();
        let remote = serve(hub, sends_parts);
        let changed = |change: fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            change(&mut bytes);
            bytes
        };
        let damages = [
            changed(|bytes| bytes[5 << 20] ^= 1),
            changed(|bytes| bytes[0] ^= 1),
            changed(|bytes| bytes.truncate(6 << 20)),
            // Whole frames go, or come twice.
            changed(|bytes| drop(bytes.drain(..4 << 20))),
            changed(|bytes| bytes.extend_from_within(..)),
            Vec::new(),
            bytes("something else", 9 << 20),
            vec![0; 9 << 20],
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            fs::write(&largest, damage).unwrap();
            let b = host(&place, &format!("b{number}"));
            match pull(&b, &remote, None) {
                // What is behind the frames is not read where parts are not sent.
                Ok(pulled) if !sends_parts && number == 4 => assert_right(&pulled.revision),
                refused => {
                    assert_error(refused, ErrorKind::Damaged, &["is damaged", "--resend"]);
                    assert!(b.templates().unwrap().is_empty(), "damage {number}");
                }
            }
        }
        fs::write(&largest, whole).unwrap();
        assert_right(&pull(&host(&place, "b"), &remote, None).unwrap().revision);
    }
}
