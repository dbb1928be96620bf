//! A wire between us and a server that speaks HTTP, which does what wires, balancers and busy servers do.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What befalls a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection is reset before anything of it is read.
    Reset,
    /// It is done, and the connection is closed before the answer.
    AnswerLost,
    /// It is not done, and the answer is 500.
    Broken,
    /// It is done, and the answer is 500.
    DoneAndBroken,
    /// It is not done: 503, SlowDown.
    SlowDown,
    /// No answer comes.
    Silent,
    /// Half of the answer's body comes.
    Truncated,
    /// A bit of the answer's body is another one.
    Flipped,
    /// A bit of the request's body is another one.
    FlippedSent,
    /// It is sent twice, and the second answer comes.
    SentTwice,
    /// The answer comes twice.
    AnsweredTwice,
}

pub const FAULTS: [Fault; 11] = [
    Fault::Reset,
    Fault::AnswerLost,
    Fault::Broken,
    Fault::DoneAndBroken,
    Fault::SlowDown,
    Fault::Silent,
    Fault::Truncated,
    Fault::Flipped,
    Fault::FlippedSent,
    Fault::SentTwice,
    Fault::AnsweredTwice,
];

/// Which requests a fault befalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Once(usize),
    From(usize),
}

#[derive(Debug)]
pub struct Wire {
    pub port: u16,
    server: u16,
    fault: Option<(Fault, When)>,
    /// Each list that was ever asked for, as it was answered first; `None` when lists are fresh.
    lists: Option<Mutex<HashMap<String, Vec<u8>>>>,
    requests: AtomicUsize,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Wire {
    /// Counts only.
    pub fn to(server: u16) -> Arc<Wire> {
        Wire::start(server, None, false)
    }

    pub fn with(server: u16, fault: Fault, when: When) -> Arc<Wire> {
        Wire::start(server, Some((fault, when)), false)
    }

    /// Answers each list as it was the first time.
    pub fn with_stale_lists(server: u16) -> Arc<Wire> {
        Wire::start(server, None, true)
    }

    fn start(server: u16, fault: Option<(Fault, When)>, stale: bool) -> Arc<Wire> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let wire = Arc::new(Wire {
            port: listener.local_addr().unwrap().port(),
            server,
            fault,
            lists: stale.then(Mutex::default),
            requests: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        });
        let weak = Arc::downgrade(&wire);
        // It ends with the first connection after the wire has gone; until then it waits, which costs nothing.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(wire) = weak.upgrade() else { return };
                // What breaks here is a fault as any other.
                std::thread::spawn(move || drop(wire.serve(stream)));
            }
        });
        wire
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// The bytes that went to the server, and those that came from it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }

    fn fault_of(&self, request: usize) -> Option<Fault> {
        let (fault, when) = self.fault?;
        match when {
            When::Once(at) => (request == at).then_some(fault),
            When::From(at) => (request >= at).then_some(fault),
        }
    }

    /// One request after the other, until the client goes.
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        while client.peek(&mut [0])? > 0 {
            let fault = self.fault_of(self.requests.fetch_add(1, Ordering::Relaxed));
            if fault == Some(Fault::Reset) {
                // What is left unread resets the connection.
                return Ok(());
            }
            let mut request = read_request(&mut client)?;
            let body = body_of(&request);
            let middle = body + (request.len() - body) / 2;
            if fault == Some(Fault::FlippedSent) && middle < request.len() {
                request[middle] ^= 1;
            }
            match fault {
                Some(Fault::Broken) => client.write_all(&refusal("500 Internal Server Error", "InternalError"))?,
                Some(Fault::SlowDown) => client.write_all(&refusal("503 Slow Down", "SlowDown"))?,
                Some(Fault::Silent) => return client.read(&mut [0]).map(drop),
                _ => {
                    let answer = self.answer(&request, fault == Some(Fault::SentTwice))?;
                    if !respond(&mut client, answer, fault)? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn answer(&self, request: &[u8], twice: bool) -> io::Result<Vec<u8>> {
        if twice {
            self.ask(request)?;
        }
        let line = String::from_utf8_lossy(request).lines().next().unwrap_or_default().to_owned();
        match &self.lists {
            Some(lists) if line.contains("list-type=2") => {
                let first = lists.lock().unwrap().get(&line).cloned();
                let answer = first.map_or_else(|| self.ask(request), Ok)?;
                Ok(lists.lock().unwrap().entry(line).or_insert(answer).clone())
            }
            _ => self.ask(request),
        }
    }

    /// Asks the server, on a connection of its own, which ends with the answer.
    fn ask(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let mut server = TcpStream::connect(("127.0.0.1", self.server))?;
        let end_of_line = request.iter().position(|byte| *byte == b'\n').unwrap_or(0) + 1;
        let request = [&request[..end_of_line], b"Connection: close\r\n", &request[end_of_line..]].concat();
        server.write_all(&request)?;
        self.sent.fetch_add(request.len() as u64, Ordering::Relaxed);
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        self.received.fetch_add(answer.len() as u64, Ordering::Relaxed);
        Ok(without_close(answer))
    }
}

/// Sends an answer, or what a fault leaves of it; gives whether the connection goes on.
fn respond(client: &mut TcpStream, mut answer: Vec<u8>, fault: Option<Fault>) -> io::Result<bool> {
    let body = body_of(&answer);
    let middle = body + (answer.len() - body) / 2;
    match fault {
        Some(Fault::AnswerLost) => return Ok(false),
        Some(Fault::DoneAndBroken) => answer = refusal("500 Internal Server Error", "InternalError"),
        Some(Fault::Truncated) if middle < answer.len() => {
            client.write_all(&answer[..middle])?;
            return Ok(false);
        }
        Some(Fault::Flipped) if middle < answer.len() => answer[middle] ^= 1,
        Some(Fault::AnsweredTwice) => answer.extend_from_within(..),
        _ => {}
    }
    client.write_all(&answer)?;
    Ok(true)
}

/// A whole request: its head, and as many bytes as that says.
pub fn read_request(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let mut piece = [0; 1 << 16];
    loop {
        let body = body_of(&request);
        if body > 0 && request.len() >= body + length(&request[..body]) {
            return Ok(request);
        }
        match client.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => request.extend_from_slice(&piece[..count]),
        }
    }
}

/// Where a message's body starts; 0 if its head is not whole.
fn body_of(message: &[u8]) -> usize {
    message.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4)
}

fn length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let named = head.lines().find_map(|line| line.strip_prefix("content-length:").map(|value| value.trim().parse()));
    named.map_or(0, Result::unwrap)
}

/// Each answer says where it ends: so the client may ask again on its connection.
fn without_close(answer: Vec<u8>) -> Vec<u8> {
    let body = body_of(&answer);
    let head = String::from_utf8_lossy(&answer[..body]).replace("Connection: close\r\n", "");
    [head.as_bytes(), &answer[body..]].concat()
}

fn refusal(status: &str, code: &str) -> Vec<u8> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>try again</Message></Error>");
    format!("HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into()
}
