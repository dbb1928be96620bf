//! Documents that somebody made to hurt, from one that is in order.

use crate::support::bytes;

/// Numbers that are too large, too small, or none.
const NUMBERS: [&str; 8] =
    ["18446744073709551615", "18446744073709551616", "-1", "1e400", "1e308", "10737418240", "1000000000", "0.5"];

/// Texts that name something else, or nothing.
const TEXTS: [&str; 14] = [
    r"..",
    r"../../../victim",
    r"/etc/passwd",
    r".store",
    r".store/format.json",
    r"",
    r"\u0000",
    r"\u001b[2Jx",
    r"a\nb",
    r"web/../web",
    r"WEB",
    r"u\u0308ber",
    r"9999-12-31T23:59:59.999999999Z",
    r"-009999-01-02T01:59:59Z",
];

/// A source of numbers that gives the same again for the same seed.
pub struct Dice {
    seed: String,
    rolled: usize,
}

impl Dice {
    pub fn new(seed: impl Into<String>) -> Dice {
        Dice { seed: seed.into(), rolled: 0 }
    }

    /// A number below `most`.
    pub fn roll(&mut self, most: usize) -> usize {
        self.rolled += 1;
        let rolled = bytes(&format!("{} {}", self.seed, self.rolled), 8);
        u64::from_le_bytes(rolled.try_into().expect("eight bytes")) as usize % most.max(1)
    }
}

/// What is not even the beginning of a document.
pub fn nonsense() -> Vec<(String, Vec<u8>)> {
    let fixed: [&[u8]; 14] = [
        b"",
        b"\0",
        b"null",
        b"true",
        b"[]",
        b"{}",
        b"{}{}",
        b"\"",
        b"{\"",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"\n\n",
        b"1e999999999",
        b"[[[[[[",
    ];
    let mut all: Vec<(String, Vec<u8>)> =
        fixed.into_iter().map(|bytes| (format!("the bytes {bytes:?}"), bytes.to_vec())).collect();
    all.push(("random bytes".into(), bytes("random", 4096)));
    all.push(("4 KiB of NUL".into(), vec![0; 4096]));
    all.push(("ten thousand lists, one in the other".into(), [b"[".repeat(10_000), b"]".repeat(10_000)].concat()));
    all.push(("a long text".into(), format!("\"{}\"", "x".repeat(100_000)).into_bytes()));
    all
}

/// One change of a document.
pub fn mutated(valid: &[u8], dice: &mut Dice) -> (String, Vec<u8>) {
    let mut bytes = valid.to_vec();
    let name = match dice.roll(8) {
        0 => {
            let at = dice.roll(bytes.len());
            bytes[at] ^= 1 << dice.roll(8);
            format!("a bit of byte {at} flipped")
        }
        1 => {
            let len = dice.roll(bytes.len());
            bytes.truncate(len);
            format!("cut to {len} bytes")
        }
        2 => {
            let (from, to) = (dice.roll(bytes.len()), dice.roll(bytes.len()));
            let part = bytes[from.min(to)..from.max(to)].to_vec();
            let at = dice.roll(bytes.len());
            bytes.splice(at..at, part);
            format!("bytes {from} to {to} once more at {at}")
        }
        3 | 4 => return replaced(valid, dice, is_number, &NUMBERS, "the number"),
        _ => return replaced(valid, dice, is_text, &TEXTS, "the text"),
    };
    (name, bytes)
}

/// Where the values of a kind are in a document.
fn values(document: &[u8], is: fn(&[u8], usize) -> Option<usize>) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < document.len() {
        match is(document, at) {
            Some(len) => {
                found.push(at..at + len);
                at += len + 1;
            }
            None => at += 1,
        }
    }
    found
}

fn is_number(document: &[u8], at: usize) -> Option<usize> {
    let starts = at > 0 && matches!(document[at - 1], b' ' | b':' | b',' | b'[') && document[at].is_ascii_digit();
    starts.then(|| document[at..].iter().take_while(|byte| byte.is_ascii_digit()).count())
}

/// What stands between two quotation marks; names of fields count as well.
fn is_text(document: &[u8], at: usize) -> Option<usize> {
    let starts = at > 0 && document[at - 1] == b'"';
    starts.then(|| document[at..].iter().take_while(|&&byte| byte != b'"').count())
}

fn replaced(
    valid: &[u8],
    dice: &mut Dice,
    is: fn(&[u8], usize) -> Option<usize>,
    by: &[&str],
    what: &str,
) -> (String, Vec<u8>) {
    let found = values(valid, is);
    if found.is_empty() {
        return ("nothing".into(), valid.to_vec());
    }
    let (at, new) = (found[dice.roll(found.len())].clone(), by[dice.roll(by.len())]);
    let old = String::from_utf8_lossy(&valid[at.clone()]).into_owned();
    let mut bytes = valid.to_vec();
    bytes.splice(at, new.bytes());
    (format!("{what} {old:?} replaced by {new:?}"), bytes)
}

/// Makes a document that is heavy.
type Heavy = Box<dyn Fn() -> Vec<u8>>;

/// Documents that take much more than they have bytes, unless somebody looks at the clock and the scales.
pub fn heavy(valid: &[u8]) -> Vec<(&'static str, Heavy)> {
    let end = valid.iter().rposition(|&byte| byte == b'}').unwrap_or(valid.len());
    let (start, end) = (valid[..end].to_vec(), valid[end..].to_vec());
    let with = |field: fn() -> Vec<u8>| -> Heavy {
        let (start, end) = (start.clone(), end.clone());
        Box::new(move || [&start, &b", \"more\": "[..], &field(), &end].concat())
    };
    vec![
        ("four million lists", with(|| [&b"["[..], &b"[0],".repeat(4 << 20), b"[0]]"].concat())),
        ("a million lists, one in the other", with(|| [b"[".repeat(1 << 20), b"]".repeat(1 << 20)].concat())),
        ("a million objects, one in the other", with(|| [b"{\"a\":".repeat(1 << 20), b"0".to_vec()].concat())),
        ("a text of 60 MiB", with(|| [b"\"".to_vec(), vec![b'x'; 60 << 20], b"\"".to_vec()].concat())),
        ("more than 64 MiB", Box::new(|| vec![b' '; (64 << 20) + 1])),
    ]
}
