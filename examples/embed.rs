//! A build tool that embeds the store: the main job in ten lines.
//!
//! `cargo run --example embed -- STORE FLAKE_LOCK`

use template_store::{Build, BuildInputs, Error, Store};

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let root = args.next().unwrap_or_else(|| "target/embed-store".into());
    let lock = args.next().unwrap_or_else(|| "examples/demo/flake.lock".into());

    let store = Store::open_or_init(&root)?;
    let inputs = BuildInputs::from_flake_lock(&lock, "minimal", "worker")?;
    let revision = match store.build(&"web".parse()?, &inputs)? {
        Build::Reused(revision) => revision,
        Build::Draft(draft) => {
            run_build(draft.path());
            draft.seal()?.publish()?
        }
    };
    println!("boot {} with {}", revision.kernel(), revision.rootfs());
    Ok(())
}

/// Stands for a call of `nix build`: it writes the artifacts where it is told.
fn run_build(out: &camino::Utf8Path) {
    for (name, text) in [("vmlinux", "a kernel"), ("rootfs.ext4", "a file system"), ("fc-base.json", "{}")] {
        std::fs::write(out.join(name), text).expect("the draft is writable");
    }
}
