//! What waits for a lock that nobody gives up: each takes ten seconds, so all of them wait at once.

use std::thread;

#[test]
fn what_is_held_all_the_time_is_left_and_stops_nothing_else() {
    thread::scope(|scope| {
        let adoption = scope.spawn(crate::adopt_left::a_revision_that_somebody_holds_for_himself_alone_is_left);
        let collection =
            scope.spawn(crate::gc_skips::a_template_whose_lock_is_held_all_the_time_does_not_stop_the_others);
        for waiting in [adoption, collection] {
            waiting.join().unwrap();
        }
    });
}
