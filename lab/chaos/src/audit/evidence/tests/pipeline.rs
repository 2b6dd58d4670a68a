//! Damage to what aggregators and sinks made of the log.

use super::run_fixture::RunFixture;
use super::{expect, wrong};
use crate::audit::content::Route;
use crate::audit::evidence::cells::bucket;
use crate::audit::evidence::{Rejection, Row};
use crate::audit::verdict::FindingKind;

/// A row of a counter that many increments went to, not of the ledger.
fn data_row(scene: &RunFixture) -> usize {
    scene.rows.iter().position(|row| row.namespace == "pages").expect("there are pages")
}

#[test]
fn an_increment_that_an_aggregator_lost_is_found_with_its_batch() {
    let mut scene = RunFixture::new();
    let (_, batch) = &mut scene.batches[2];
    let from = batch.from;
    let delta = batch.deltas.iter_mut().find(|delta| delta.events == 1).unwrap();
    delta.sum -= 1 << 30;
    scene.store();
    let audit = scene.audit();
    expect(&audit, &[FindingKind::Sums, FindingKind::Counter], 0, 0);
    let sums =
        audit.findings.listed.iter().find(|finding| finding.kind == FindingKind::Sums).unwrap();
    assert_eq!((sums.at, audit.wrong_counters), (Some((0, from)), 1));
}

/// Two increments of one batch that add up to the same in the wrong counters.
#[test]
fn a_loss_and_a_gain_that_cancel_are_found() {
    let mut scene = RunFixture::new();
    let (_, batch) = &mut scene.batches[1];
    batch.deltas[0].sum += 5;
    batch.deltas[1].sum -= 5;
    scene.store();
    let audit = scene.audit();
    expect(&audit, &[FindingKind::Sums, FindingKind::Counter], 0, 0);
    assert_eq!(audit.wrong_counters, 2);
}

/// A batch that holds what another should: the counters of the store come out right.
#[test]
fn a_loss_in_one_batch_that_another_makes_up_for_is_found() {
    let mut scene = RunFixture::new();
    let moved = scene.batches[1].1.deltas[0].clone();
    scene.batches[0].1.deltas.push(moved.clone());
    scene.batches[0].1.increments += moved.events;
    scene.batches[1].1.deltas.remove(0);
    scene.batches[1].1.increments -= moved.events;
    scene.store();
    expect(&scene.audit(), &[FindingKind::Accounting, FindingKind::Sums], 0, 0);
}

#[test]
fn a_message_that_a_batch_does_not_account_for_is_found() {
    let mut scene = RunFixture::new();
    scene.batches[0].1.counted -= 1;
    scene.store();
    assert_eq!(wrong(&scene.audit()), [FindingKind::Accounting, FindingKind::Ledger].into());
}

#[test]
fn a_hole_in_the_chain_is_found() {
    let mut scene = RunFixture::new();
    scene.batches.remove(2);
    scene.store();
    let audit = scene.audit();
    let kinds = wrong(&audit);
    assert!(
        kinds.contains(&FindingKind::Chain) && kinds.contains(&FindingKind::Counter),
        "{audit}"
    );
    assert!(
        audit.findings.listed.iter().any(|finding| finding.what.ends_with("a hole")),
        "{audit}"
    );
    assert!(audit.lost > 0 && audit.doubled == 0, "{audit}");
}

#[test]
fn an_overlap_in_the_chain_is_found() {
    let mut scene = RunFixture::new();
    let (offset, again) = scene.batches[2].clone();
    scene.batches.insert(3, (offset + 1, again));
    scene.store();
    let audit = scene.audit();
    let kinds = wrong(&audit);
    assert!(
        kinds.contains(&FindingKind::Chain) && kinds.contains(&FindingKind::Counter),
        "{audit}"
    );
    assert!(
        audit.findings.listed.iter().any(|finding| finding.what.ends_with("an overlap")),
        "{audit}"
    );
    assert!(audit.doubled > 0 && audit.lost == 0, "{audit}");
}

#[test]
fn a_log_that_batches_do_not_cover_is_found() {
    let mut scene = RunFixture::new();
    scene.batches.pop();
    scene.store();
    let audit = scene.audit();
    expect(&audit, &[FindingKind::Behind], 0, 0);
    assert!(audit.behind > 0 && !audit.is_wrong(), "{audit}");
}

/// The rows that a batch's block has; they are the last ones of the partition's.
fn last_block(scene: &mut RunFixture) -> Vec<Row> {
    let (whole, last) = (scene.rows.clone(), scene.batches.pop().unwrap());
    scene.store();
    let block = whole[scene.rows.len()..].to_vec();
    scene.batches.push(last);
    scene.rows = whole;
    block
}

#[test]
fn a_block_that_was_stored_twice_is_found() {
    let mut scene = RunFixture::new();
    let block = last_block(&mut scene);
    let increments = scene.batches.last().unwrap().1.increments;
    scene.rows.extend(block);
    let audit = scene.audit();
    expect(&audit, &[FindingKind::Ledger, FindingKind::Counter], 0, increments.cast_unsigned());
}

#[test]
fn a_block_that_was_not_stored_is_found_and_its_history_told() {
    let mut scene = RunFixture::new();
    let block = last_block(&mut scene);
    let increments = scene.batches.last().unwrap().1.increments;
    scene.rows.truncate(scene.rows.len() - block.len());
    let audit = scene.audit();
    expect(&audit, &[FindingKind::Behind], 0, 0);
    assert_eq!((audit.behind, audit.is_wrong()), (increments.cast_unsigned(), false));
    let history = audit.history.unwrap();
    assert!(history.contains("NOT stored"), "{history}");
    assert!(history.contains("acknowledged at"), "{history}");
}

/// A block's counters without its ledger rows, and the other way round.
#[test]
fn half_a_block_is_wrong_and_not_behind() {
    for has_ledger in [true, false] {
        let mut scene = RunFixture::new();
        let mut block = last_block(&mut scene);
        scene.rows.truncate(scene.rows.len() - block.len());
        block.retain(|row| (row.namespace == "__tally") == has_ledger);
        scene.rows.extend(block);
        let audit = scene.audit();
        assert!(audit.is_wrong() && wrong(&audit).contains(&FindingKind::Counter), "{audit}");
    }
}

#[test]
fn a_wrong_counter_is_wrong_also_where_not_all_is_stored() {
    let mut scene = RunFixture::new();
    let block = last_block(&mut scene);
    scene.rows.truncate(scene.rows.len() - block.len());
    let row = data_row(&scene);
    scene.rows[row].sum += 1;
    let audit = scene.audit();
    expect(&audit, &[FindingKind::Behind, FindingKind::Counter], 0, 0);
    assert!(audit.is_wrong() && audit.wrong_counters == 1, "{audit}");
}

#[test]
fn a_counter_that_is_off_by_one_increment_names_the_message() {
    let mut scene = RunFixture::new();
    let index = scene.of(Route::Single)[7];
    let (partition, offset) = (scene.log[index].partition, scene.log[index].offset);
    let mark = scene.log[index].mark.unwrap();
    let increment =
        scene.record.content(&scene.record.entries[mark as usize]).batch.increments.remove(0);
    let row = scene.rows.iter_mut().find(|row| {
        (row.partition, &row.namespace, &row.key, row.bucket)
            == (
                partition.cast_unsigned(),
                &increment.namespace,
                &increment.key,
                bucket(increment.at),
            )
    });
    let row = row.unwrap();
    row.sum -= i128::from(increment.delta);
    row.events -= 1;
    let audit = scene.audit();
    expect(&audit, &[FindingKind::Counter], 1, 0);
    assert_eq!(audit.findings.listed[0].at, Some((partition, offset)));
}

#[test]
fn a_counter_too_many_is_found() {
    let mut scene = RunFixture::new();
    let mut extra = scene.rows[data_row(&scene)].clone();
    extra.key = "nobody's".into();
    let events = extra.events;
    scene.rows.push(extra);
    let audit = scene.audit();
    expect(&audit, &[FindingKind::Counter], 0, events.cast_unsigned());
    assert_eq!(audit.wrong_counters, 1);
}

#[test]
fn a_row_of_no_partition_is_found() {
    let mut scene = RunFixture::new();
    let mut extra = scene.rows[data_row(&scene)].clone();
    extra.partition = 7;
    scene.rows.push(extra);
    expect(&scene.audit(), &[FindingKind::Ledger], 0, 0);
}

#[test]
fn a_bad_message_that_was_not_rejected_is_found() {
    let mut scene = RunFixture::new();
    scene.rejections.pop();
    expect(&scene.audit(), &[FindingKind::Rejected], 0, 0);
}

#[test]
fn a_message_that_was_rejected_twice_or_for_another_reason_is_found() {
    let mut scene = RunFixture::new();
    scene.rejections.push(scene.rejections[0].clone());
    expect(&scene.audit(), &[FindingKind::Rejected], 0, 0);
    let mut scene = RunFixture::new();
    scene.rejections[0].reason = "overflow".into();
    expect(&scene.audit(), &[FindingKind::Rejected], 0, 0);
    let mut scene = RunFixture::new();
    scene.rejections[0].payload.push(0);
    expect(&scene.audit(), &[FindingKind::Rejected], 0, 0);
}

#[test]
fn a_sound_message_that_was_rejected_is_found() {
    let mut scene = RunFixture::new();
    let sound = &scene.log[scene.of(Route::Single)[0]];
    let (partition, offset, payload) = (sound.partition, sound.offset, sound.payload.clone());
    scene.rejections.push(Rejection { partition, offset, reason: "overflow".into(), payload });
    let audit = scene.audit();
    expect(&audit, &[FindingKind::Rejected], 0, 0);
    assert!(audit.findings.listed[0].what.contains("sound"), "{audit}");
}

#[test]
fn a_batch_of_another_topic_or_a_correction_is_found() {
    let mut scene = RunFixture::new();
    scene.batches[1].1.topic_id = "made again".into();
    expect(&scene.audit(), &[FindingKind::Accounting], 0, 0);
    let mut scene = RunFixture::new();
    scene.batches[1].1.correction = true;
    expect(&scene.audit(), &[FindingKind::Accounting], 0, 0);
}

#[test]
fn an_answer_that_should_not_have_been_is_found() {
    let mut scene = RunFixture::new();
    scene.record.oddities.push("request 3: 400".into());
    expect(&scene.audit(), &[FindingKind::Answer], 0, 0);
}
