//! What is to be kept, as flags and `.store/config.toml` say it; goals of space; what gc refuses to guess.

use std::fs;
use std::time::Duration;

use template_store::gc::{Adopted, Limits, Policy, Space};
use template_store::{ErrorKind, Store};

use crate::gc::{all, collect, dry_run, going, publish, removed};
use crate::interning::by_nobody;
use crate::support::{Place, Ran, assert_error, assert_right, fresh, id, listing};

fn web_of_four() -> (Place, Store) {
    let (place, store) = fresh();
    publish(&store, "web", &["a", "b", "c", "d"]);
    (place, store)
}

#[test]
fn a_configuration_says_what_is_kept() {
    let text = r#"
        [gc]
        keep_last = 7
        keep_within = "14d"
        rollback = 2
        max_size = "200GiB"
        min_free = "10%"
        include_adopted = true
        [gc.template.web]
        keep_last = 10
        [gc.template.db]
        keep_within = "36h"
        rollback = 0
    "#;
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let expected = Policy::default()
        .keep_last(7u32)
        .keep_within(hours(14 * 24))
        .rollback(2u32)
        .max_size(200u64 << 30)
        .min_free(Space::Percent(10.0))
        .adopted(Adopted::Collect)
        .template(id("web"), Limits::default().keep_last(10u32))
        .template(id("db"), Limits::default().keep_within(hours(36)).rollback(0u32));
    assert_eq!(Policy::from_toml(text).unwrap(), expected);
    for nothing in ["", "[gc]", "# nothing\n"] {
        assert_eq!(Policy::from_toml(nothing).unwrap(), Policy::default(), "{nothing:?}");
    }
    let bytes = Policy::from_toml("[gc]\nmin_free = \"50GiB\"").unwrap();
    assert_eq!(bytes.min_free, Some(Space::Bytes(50 << 30)));
}

/// Mistakes, each with what is said about it.
const MISTAKES: [(&str, &str); 19] = [
    ("[gc]\nkeep_lats = 5", "keep_lats"),
    ("[gc]\nkeep_last = -1", "keep_last"),
    ("[gc]\nkeep_last = \"5\"", "keep_last"),
    ("[gc]\nkeep_last = 99999999999", "keep_last"),
    ("[gc]\nkeep_within = \"soon\"", "soon"),
    ("[gc]\nkeep_within = \"-3d\"", "-3d"),
    ("[gc]\nkeep_within = 14", "keep_within"),
    ("[gc]\nmax_size = \"much\"", "much"),
    ("[gc]\nmax_size = \"-1GiB\"", "-1GiB"),
    ("[gc]\nmin_free = \"120%\"", "120%"),
    ("[gc]\nmin_free = \"NaN%\"", "NaN%"),
    ("[gc.template.web]\nmax_size = \"1GiB\"", "max_size"),
    ("[gc.template.\"../web\"]\nkeep_last = 1", "../web"),
    ("[gc.template.web]\nkeep_within = \"soon\"", "soon"),
    ("[gc]\nkeep_last = 1\nkeep_last = 2", "keep_last"),
    ("[gc", "config.toml"),
    ("keep_last = 5", "keep_last"),
    ("[cg]\nkeep_last = 5", "cg"),
    ("gc = 5", "gc"),
];

#[test]
fn a_mistake_in_a_configuration_is_named() {
    for (text, word) in MISTAKES {
        let error = Policy::from_toml(text).expect_err(text).to_string();
        assert!(error.contains(word) && error.contains("config.toml"), "{text:?}: {error}");
    }
}

#[test]
fn nothing_is_collected_while_the_configuration_has_a_mistake() {
    let (place, store) = web_of_four();
    dry_run(&place, &[]);
    for (text, _) in MISTAKES {
        fs::write(store.layout().config(), text).unwrap();
        let before = listing(store.layout().root());
        let path = store.layout().config().to_string();
        for words in [&["gc"][..], &["gc", "--keep-last", "1"], &["gc", "--dry-run"], &["why", "web"]] {
            let ran = place.run(words).says(&[&path]);
            assert!(matches!(ran.code, Some(1 | 2)), "{text:?}: {ran:?}");
        }
        assert_eq!(listing(store.layout().root()), before, "{text:?}");
    }
    fs::write(store.layout().config(), b"[gc]\nkeep_last = 1 # \xFF").unwrap();
    place.run(&["gc"]).with_code(1).says(&["config.toml", "UTF-8"]);
    assert_eq!(all(&store).len(), 4);
}

#[test]
fn flags_count_more_than_the_configuration_and_templates_more_than_both() {
    let (place, store) = web_of_four();
    publish(&store, "db", &["e", "f", "g", "h"]);
    fs::write(store.layout().config(), "[gc]\nkeep_last = 2\n[gc.template.db]\nkeep_last = 3").unwrap();
    assert_eq!(going(&dry_run(&place, &[])).len(), 2 + 1);
    assert_eq!(going(&dry_run(&place, &["--keep-last", "1"])).len(), 3 + 1, "db has limits of its own");
    assert_eq!(going(&dry_run(&place, &["--keep-within", "14d"])), [""; 0]);
    let (_, report) = collect(&place, &[]);
    assert_eq!(report.removed.len(), 3);
}

#[test]
fn a_size_that_can_be_reached_is_reached_and_no_more() {
    let (place, store) = web_of_four();
    dry_run(&place, &["--keep-last", "0"]);
    let size = store.usage().unwrap().on_disk;
    // Each revision is more than 384 KiB and less than 500 KiB.
    let max = (size - (500 << 10)).to_string();
    let (plan, report) = collect(&place, &["--keep-last", "9", "--rollback", "0", "--max-size", &max]);
    assert_eq!(removed(&report).len(), 2, "{plan:?}");
    assert!(store.usage().unwrap().on_disk <= size - (500 << 10));
    assert_right(&store.current(&id("web")).unwrap());
}

#[test]
fn a_size_that_cannot_be_reached_takes_nothing_and_says_so() {
    let (place, store) = fresh();
    publish(&store, "web", &["a", "b", "c"]);
    dry_run(&place, &["--keep-last", "0"]);
    let before = listing(store.layout().root());
    for words in [["--max-size", "1KiB"], ["--min-free", "100%"]] {
        for more in [&["--dry-run"][..], &[]] {
            let ran = place.run(&[&["gc"], &words[..], more].concat()).with_code(5);
            ran.says(&["nothing was taken for it"]);
        }
        assert_eq!(listing(store.layout().root()), before, "{words:?}");
    }
    // What the limits take goes all the same.
    place.run(&["gc", "--keep-last", "1", "--max-size", "1KiB"]).with_code(5);
    assert_eq!(all(&store).len(), 1);
}

#[test]
fn a_pin_that_cannot_be_read_stops_everything() {
    let (place, store) = web_of_four();
    dry_run(&place, &[]);
    let pin = store.layout().pin(&id("broken"));
    for text in ["", "{", "{\"template\": \"web\"}", "{\"template\": \"../web\", \"revision\": \"r1\"}"] {
        fs::write(&pin, text).unwrap();
        let before = listing(store.layout().root());
        for words in [&["gc"][..], &["gc", "--dry-run"], &["gc", "--keep-last", "0"]] {
            place.run(words).with_code(4).says(&[pin.as_str(), "pin"]);
        }
        assert_eq!(listing(store.layout().root()), before, "{text:?}");
        assert_error(store.pins(), ErrorKind::Damaged, &[pin.as_str()]);
    }
    place.done(&["unpin", "broken"]);
    collect(&place, &[]);
    assert_eq!(all(&store).len(), 3);
}

#[test]
fn another_user_collects_nothing_and_leaves_all_as_it_is() {
    let (place, store) = web_of_four();
    dry_run(&place, &[]);
    let run = |words: &[&str]| by_nobody(&place, words).map(|mut command| Ran::of(command.output().unwrap()));
    let Some(looked) = run(&["gc", "--dry-run"]) else { return };
    assert!(looked.with_code(0).out.contains("would remove 1 revision"));
    let before = listing(store.layout().root());
    let ran = run(&["--json", "gc"]).unwrap();
    assert!(matches!(ran.code, Some(1 | 5)), "{ran:?}");
    assert!(ran.err.contains("denied") || ran.out.contains("denied"), "{ran:?}");
    assert_eq!(listing(store.layout().root()), before);
    assert_right(&store.current(&id("web")).unwrap());
}
