//! Damage to the log, or to what its senders were told.

use super::run_fixture::RunFixture;
use super::{expect, wrong};
use crate::audit::codec::{Delta, IncrementBatch};
use crate::audit::content::Route;
use crate::audit::evidence::cells::{Names, bucket};
use crate::audit::evidence::partition::{Fate, Partition};
use crate::audit::record::State;
use crate::audit::verdict::{FindingKind, Logged};

#[test]
fn a_run_as_it_should_be_is_clean() {
    let audit = RunFixture::new().audit();
    assert!(audit.is_clean(), "{audit}");
    assert!(
        audit.logged.duplicate > 0 && audit.logged.rejected > 0 && audit.logged.skipped > 0,
        "{audit}"
    );
    assert_eq!(
        audit.logged.messages,
        audit.logged.counted + audit.logged.duplicate + audit.logged.rejected
    );
    assert_eq!(audit.logged.repeated, 0, "what was sent again on purpose");
    assert_eq!(audit.history, None);
}

#[test]
fn a_run_without_ids_is_clean_and_has_no_duplicates() {
    let audit = RunFixture::without_ids().audit();
    assert!(audit.is_clean(), "{audit}");
    assert!(audit.logged.counted > 0 && audit.logged.rejected > 0, "{audit}");
    assert_eq!(
        (audit.logged.duplicate, audit.logged.skipped, audit.logged.repeated),
        (0, 0, 0),
        "{audit}"
    );
}

#[test]
fn what_was_not_acknowledged_may_be_there_or_not() {
    for mut scene in [RunFixture::new(), RunFixture::without_ids()] {
        let [there, gone] = scene.of(Route::Single)[..2] else { panic!("there are two") };
        for index in [there, gone] {
            scene.entry(index).state = State::Unknown;
        }
        scene.remove(gone);
        scene.flush();
        scene.store();
        let audit = scene.audit();
        assert!(audit.is_clean(), "{audit}");
        assert_eq!(audit.sent.unknown, 2);
    }
}

#[test]
fn an_acknowledged_message_that_the_log_lost_is_found() {
    for mut scene in [RunFixture::new(), RunFixture::without_ids()] {
        let index = scene.of(Route::Single)[5];
        scene.remove(index);
        scene.flush();
        scene.store();
        let audit = scene.audit();
        expect(&audit, &[FindingKind::Lost], 1, 0);
        assert!(audit.history.unwrap().contains("> batch"));
    }
}

#[test]
fn a_request_that_the_log_lost_is_found() {
    let mut scene = RunFixture::new();
    let found = scene.log.iter().position(|message| message.mark.is_none()).unwrap();
    let payload = scene.log[found].payload.clone();
    while let Some(index) = scene.log.iter().position(|message| message.payload == payload) {
        scene.remove(index);
    }
    scene.flush();
    scene.store();
    assert_eq!(wrong(&scene.audit()), [FindingKind::Lost].into());
}

#[test]
fn a_message_without_ids_that_the_log_has_twice_is_found() {
    for way in [Route::Single, Route::Batch] {
        let mut scene = RunFixture::without_ids();
        let index = scene.of(way)[3];
        scene.append_again(index, scene.log[index].partition);
        expect(&scene.audit(), &[FindingKind::Doubled], 0, scene.increments(index));
    }
}

#[test]
fn a_message_with_ids_that_its_client_appended_twice_counts_once() {
    for way in [Route::Single, Route::Batch] {
        let mut scene = RunFixture::new();
        let before = scene.audit().logged;
        let index = scene.of(way)[3];
        scene.append_again(index, scene.log[index].partition);
        let audit = scene.audit();
        assert!(audit.is_clean(), "{audit}");
        let Logged { repeated, duplicate, counted, increments, .. } = audit.logged;
        assert_eq!((repeated, duplicate), (1, before.duplicate + 1), "{audit}");
        assert_eq!((counted, increments), (before.counted, before.increments), "{audit}");
    }
}

/// An aggregator that forgets ids counts the second copy too.
#[test]
fn a_message_with_ids_that_was_counted_twice_is_found() {
    let mut scene = RunFixture::new();
    let index = scene.of(Route::Single)[3];
    let partition = scene.log[index].partition;
    scene.append_again(index, partition);
    let entry = *scene.entry(index);
    let increment = scene.record.content(&entry).batch.increments.remove(0);
    let last = scene.batches.iter_mut().rfind(|(_, batch)| batch.partition == partition);
    let (_, batch) = last.unwrap();
    (batch.counted, batch.duplicate) = (batch.counted + 1, batch.duplicate - 1);
    batch.increments += 1;
    batch.deltas.push(Delta {
        bucket: bucket(increment.at),
        namespace: increment.namespace,
        key: increment.key,
        sum: increment.delta,
        events: 1,
    });
    scene.store();
    expect(
        &scene.audit(),
        &[FindingKind::Accounting, FindingKind::Sums, FindingKind::Ledger, FindingKind::Counter],
        0,
        1,
    );
}

#[test]
fn a_message_with_ids_in_two_partitions_is_found() {
    for way in [Route::Single, Route::Batch] {
        let mut scene = RunFixture::new();
        let index = scene.of(way)[3];
        scene.append_again(index, 1 - scene.log[index].partition);
        expect(&scene.audit(), &[FindingKind::Doubled], 0, scene.increments(index));
    }
}

#[test]
fn a_bad_message_that_its_client_appended_twice_is_rejected_twice() {
    for mut scene in [RunFixture::new(), RunFixture::without_ids()] {
        let before = scene.audit().logged;
        let index = scene.of(Route::Bad)[3];
        let partition = scene.log[index].partition;
        let again = scene.append_again(index, partition);
        let audit = scene.audit();
        assert!(audit.is_clean(), "{audit}");
        assert_eq!(
            (audit.logged.repeated, audit.logged.rejected),
            (1, before.rejected + 1),
            "{audit}"
        );
        scene
            .rejections
            .retain(|rejection| (rejection.partition, rejection.offset) != (partition, again));
        let audit = scene.audit();
        expect(&audit, &[FindingKind::Rejected], 0, 0);
        assert_eq!(audit.findings.listed[0].at, Some((partition, again)));
    }
}

/// Its client may tell the place of either.
#[test]
fn of_two_copies_one_is_where_the_acknowledgement_said() {
    let mut scene = RunFixture::new();
    let index = scene.of(Route::Single)[3];
    let again = scene.append_again(index, scene.log[index].partition);
    scene.entry(index).offset = again;
    let audit = scene.audit();
    assert!(audit.is_clean(), "{audit}");
    scene.entry(index).offset = again - 1;
    expect(&scene.audit(), &[FindingKind::Misplaced], 0, 0);
}

#[test]
fn a_request_in_two_partitions_is_found() {
    let mut scene = RunFixture::new();
    let index = scene.log.iter().position(|message| message.mark.is_none()).unwrap();
    scene.append_again(index, 1 - scene.log[index].partition);
    let audit = scene.audit();
    assert_eq!(wrong(&audit), [FindingKind::Doubled].into(), "{audit}");
    assert!(audit.doubled > 0);
}

#[test]
fn a_message_that_was_said_not_to_be_there_is_found() {
    let mut scene = RunFixture::new();
    let request =
        scene.record.entries.iter_mut().find(|entry| entry.way == Route::Request).unwrap();
    request.state = State::NotApplied;
    expect(&scene.audit(), &[FindingKind::Applied], 0, 0);
}

#[test]
fn a_message_elsewhere_than_acknowledged_is_found() {
    let mut scene = RunFixture::new();
    let index = scene.of(Route::Batch)[2];
    scene.entry(index).offset += 1;
    expect(&scene.audit(), &[FindingKind::Misplaced], 0, 0);
}

#[test]
fn a_message_with_other_content_is_found() {
    let mut scene = RunFixture::new();
    let index = scene.of(Route::Single)[4];
    let other = scene.of(Route::Single)[5];
    scene.log[index].payload = scene.log[other].payload.clone();
    scene.flush();
    scene.store();
    expect(&scene.audit(), &[FindingKind::Altered], 0, 0);
}

#[test]
fn a_message_that_nobody_sent_is_found() {
    let mut scene = RunFixture::new();
    let mut foreign = scene.log[scene.of(Route::Single)[0]].clone();
    (foreign.offset, foreign.mark) = (scene.end(foreign.partition), None);
    scene.log.push(foreign);
    scene.flush();
    scene.store();
    expect(&scene.audit(), &[FindingKind::Foreign], 0, 0);
}

/// An id of a batch says nothing about increments of that id.
#[test]
fn ids_of_batches_and_of_increments_are_apart() {
    let mut scene = RunFixture::new();
    let mut partition = Partition::new(0);
    let mut names = Names::default();
    let entry = *scene.entry(scene.of(Route::Single)[0]);
    let mut increment = scene.record.content(&entry).batch.increments.remove(0);
    increment.id = Some("x".into());
    let named = IncrementBatch {
        id: Some("x".into()),
        increments: vec![increment.clone(), increment.clone()],
    };
    let plain = IncrementBatch { id: None, increments: vec![increment] };
    partition.fold(0, None, &named, &mut names);
    partition.fold(1, None, &named, &mut names);
    partition.fold(2, None, &plain, &mut names);
    let counted: Vec<u32> = partition.seen.iter().map(|seen| seen.increments).collect();
    assert_eq!(counted, [1, 0, 0], "one of two in the first, and no more");
    let mut partition = Partition::new(0);
    partition.fold(0, None, &plain, &mut names);
    partition.fold(
        1,
        None,
        &IncrementBatch { increments: plain.increments.clone(), ..named },
        &mut names,
    );
    let fates: Vec<_> = partition.seen.iter().map(|seen| seen.fate).collect();
    assert_eq!(fates, [Fate::Counted, Fate::Duplicate]);
}
