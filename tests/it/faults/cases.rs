//! What is done while the disk fails: every operation that changes a store, in the situations that matter.

use std::any::Any;

use super::calls::{self, Did};
use crate::powercut::acts::Act::{
    self, Activate, Apply, Attach, Build, Create, Fail, Gc, Import, Init, Instance, Litter, Pin, Pull, Rebuild,
    RebuildOnly, Remove, RemoveCurrent, RemoveInstance, RemoveTemplate, Rollback, SealTwice, Unpin,
};
use crate::powercut::acts::Place;
use crate::powercut::acts::Term::{Always, Long, Over};
use crate::powercut::mending::Work as Mending;

/// What somebody asks for.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    Act(Act),
    /// What no act says. It can be asked for again when it was done.
    Call(fn(&Place) -> Did),
}

/// What there is before the work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ground {
    /// All that is there is whole, and so it must be at any time.
    Whole,
    /// A file is not what was published, until the work is done.
    Rotten,
    /// What a repair or an adoption begins with: no bytes are lost on the way.
    Mending(Mending),
}

/// What a dying process leaves is that of one that lives until the tree is copied.
type Alive = Box<dyn Any>;

/// Work, and where it is done.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub before: &'static [Act],
    pub prepare: fn(&Place) -> Alive,
    pub ground: Ground,
    pub work: Work,
}

const fn act(name: &'static str, before: &'static [Act], act: Act) -> Case {
    Case { name, before, prepare: |_| Box::new(()), ground: Ground::Whole, work: Work::Act(act) }
}

const fn call(name: &'static str, before: &'static [Act], call: fn(&Place) -> Did) -> Case {
    Case { name, before, prepare: |_| Box::new(()), ground: Ground::Whole, work: Work::Call(call) }
}

impl Case {
    const fn after(self, prepare: fn(&Place) -> Alive) -> Case {
        Case { prepare, ..self }
    }

    const fn on(self, ground: Ground) -> Case {
        Case { ground, ..self }
    }
}

const ONE: &[Act] = &[Init, Build("web", "one")];
const TWO: &[Act] = &[Init, Build("web", "one"), Build("web", "two")];
const THREE: &[Act] = &[Init, Build("web", "one"), Build("web", "three"), Build("web", "two")];

pub const CASES: &[Case] = &[
    act("init", &[], Init),
    call("open a store whose maker died", &[Init], calls::open).after(calls::unfinished),
    act("create", &[Init], Create("web")),
    act("create a template that is there", &[Init, Create("web")], Create("web")),
    act("apply to a new template", &[Init], Apply("web")),
    act("apply to a template that is there", ONE, Apply("web")),
    act("publish a build", &[Init, Create("web")], Build("web", "one")),
    act("publish a build into a new template", &[Init], Build("web", "two")),
    act("publish a build that shares a file", ONE, Build("web", "two")),
    act("publish the same again", ONE, Rebuild("web", "one")),
    act("publish a build without activating it", ONE, RebuildOnly("web", "two")),
    act("publish what two have sealed", &[Init, Create("web")], SealTwice("web", "two")),
    call("publish with a file that has another name", ONE, calls::linked),
    call("publish with zeros, attributes and closed directories", ONE, calls::awkward),
    call("publish another build under an id that is taken", ONE, calls::another),
    act("publish a copy of a directory", ONE, Import("web", "two")),
    call("publish a copy without activating it", ONE, calls::copy_in),
    call("move a directory in", &[Init, Build("web", "three")], calls::move_in).after(calls::built),
    call("move a directory in that shares a file", TWO, calls::move_in).after(calls::built),
    act("pull", &[Init], Pull("web", "two")),
    act("pull what shares a file", ONE, Pull("web", "two")),
    act("pull what is there", TWO, Pull("web", "one")),
    act("reuse", TWO, Build("web", "one")),
    act("reuse in another template", &[Init, Build("web", "one"), Create("shop")], Build("shop", "one")),
    act("reuse in a new template", ONE, Build("shop", "one")),
    act("reuse in a template of another size", &[Init, Build("web", "one"), Create("large")], Build("large", "one")),
    act("take over from a builder that died", &[Init, Create("web")], Build("web", "one")).after(calls::dead_builder),
    act("build after a sealed draft of the dead", ONE, Build("web", "two")).after(calls::dead_sealed),
    act("fail a build", &[Init, Create("web")], Fail("web", "three")),
    call("abandon a draft", ONE, calls::abandon),
    call("drop a draft", ONE, calls::drop_draft),
    call("drop a sealed draft", ONE, calls::drop_sealed),
    call("compare a draft", ONE, calls::compare),
    act("activate", TWO, Activate("web", "one")),
    act("activate what is current", ONE, Activate("web", "one")),
    act("activate where a swap was not synced", TWO, Activate("web", "two")).after(calls::unsettled),
    act("activate after a repair that died", TWO, Activate("web", "one")).after(calls::half_repaired),
    act("roll back", THREE, Rollback("web")),
    act("remove", TWO, Remove("web", "one")),
    act("remove what is current, by force", TWO, RemoveCurrent("web", "two")),
    call("remove what is in use, by force", TWO, calls::remove_used),
    act("remove a template", &[Init, Build("web", "one"), Build("shop", "one")], RemoveTemplate("web")),
    act("pin", ONE, Pin("keep", "web", "one", Long)),
    act("pin for another time", &[Init, Build("web", "one"), Pin("keep", "web", "one", Long)], PIN_ALWAYS),
    act("unpin", &[Init, Build("web", "one"), Pin("keep", "web", "one", Long)], Unpin("keep")),
    act("collect revisions", THREE, Gc),
    act("collect in several templates", SEVERAL, Gc),
    act("collect what the dead left", WITH_LITTER, Gc),
    act("collect a dead draft and a lock", ONE, Gc).after(calls::dead_sealed),
    act("collect what was half removed", TWO, Gc).after(calls::half_removed),
    act("collect the note of an instance that is gone", ONE, Gc).after(calls::lost_instance),
    call("note a holder", ONE, calls::note_holder),
    act("make an instance", ONE, Instance("web", "1")),
    act("make an instance beside what a dead one left", ONE, Instance("web", "1")).after(calls::dead_instance),
    call("make a warm instance", &[Init, Build("web", "two"), Attach("web", "idle")], calls::warm),
    call("make an instance for somebody", ONE, calls::given),
    act("remove an instance", &[Init, Build("web", "one"), Instance("web", "1")], RemoveInstance("1")),
    act("attach a snapshot", ONE, Attach("web", "first")),
    act("attach a snapshot of an idle VM", &[Init, Build("web", "two")], Attach("web", "idle")),
    act("replace a snapshot", &[Init, Build("web", "one"), Attach("web", "first")], Attach("web", "second")),
    call("verify", TWO, calls::verify),
    call("publish what heals a file", ONE, calls::build_again).after(calls::rot_file).on(Ground::Rotten),
    call("publish what heals a record", &[Init], calls::publish_derived).after(calls::rot_record).on(Ground::Rotten),
    call("publish what replaces a rotten object", ONE, calls::build_two).after(calls::rot_object).on(Ground::Rotten),
    call("repair a store without objects and keys", TWO, calls::repair).after(calls::lose_index),
    call("repair a snapshot", &[Init, Build("web", "one"), Attach("web", "first")], calls::repair)
        .after(calls::rot_snapshot)
        .on(Ground::Rotten),
    call("repair", &[], calls::repair).after(calls::prepare_repair).on(Ground::Mending(Mending::Repair)),
    call("adopt", &[], calls::adopt).after(calls::prepare_adopt).on(Ground::Mending(Mending::Adopt)),
];

const PIN_ALWAYS: Act = Pin("keep", "web", "one", Always);

const SEVERAL: &[Act] = &[
    Init,
    Build("web", "one"),
    Build("web", "two"),
    Build("shop", "one"),
    Build("db", "three"),
    Build("db", "one"),
    Build("db", "two"),
];

const WITH_LITTER: &[Act] = &[Init, Build("web", "one"), Build("web", "three"), Pin("old", "web", "one", Over), Litter];
