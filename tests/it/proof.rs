//! How much of the long tests a run does: a sample, a share, or all of it.
//!
//! The environment variable `PROOF` says so. Without it, each long test does a sample that takes some seconds and is
//! the same every time. `PROOF=all` does all of it, and `PROOF=3/8` the third of eight shares: all shares together do
//! all of it. `tests/proof.sh` sets it.

use std::sync::LazyLock;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Extent {
    Sample,
    Share { number: usize, of: usize },
    All,
}

static EXTENT: LazyLock<Extent> = LazyLock::new(|| match std::env::var("PROOF") {
    Err(_) => Extent::Sample,
    Ok(text) => parse(&text).unwrap_or_else(|| panic!("PROOF={text}: it must be `all`, or a share such as `3/8`")),
});

fn parse(text: &str) -> Option<Extent> {
    if text == "all" {
        return Some(Extent::All);
    }
    let (number, of) = text.split_once('/')?;
    let (number, of): (usize, usize) = (number.parse().ok()?, of.parse().ok()?);
    (1..=of).contains(&number).then_some(Extent::Share { number, of })
}

/// Whether only a sample is asked for.
pub fn quick() -> bool {
    *EXTENT == Extent::Sample
}

/// Whether this run does the case with this number; a sample has every `sparse`th one.
pub fn chosen(index: usize, sparse: usize) -> bool {
    is_chosen(*EXTENT, index, sparse)
}

fn is_chosen(extent: Extent, index: usize, sparse: usize) -> bool {
    match extent {
        Extent::Sample => index.is_multiple_of(sparse),
        Extent::Share { number, of } => index % of == number - 1,
        Extent::All => true,
    }
}

/// How many of something that is not numbered: seconds, rounds, random sequences.
pub fn scaled(sample: usize, all: usize) -> usize {
    match *EXTENT {
        Extent::Sample => sample,
        Extent::Share { of, .. } => (all / of).max(sample),
        Extent::All => all,
    }
}

#[test]
fn all_shares_together_do_every_case_once() {
    for case in 0..100 {
        let shares = (1..=8).filter(|&number| is_chosen(Extent::Share { number, of: 8 }, case, 5)).count();
        assert_eq!(shares, 1, "case {case}");
    }
    assert_eq!(parse("8/8"), Some(Extent::Share { number: 8, of: 8 }));
    assert_eq!(["", "0/8", "9/8", "1", "some", "1/0"].map(parse), [None; 6]);
}
