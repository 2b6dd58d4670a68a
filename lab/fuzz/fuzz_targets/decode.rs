//! Any bytes, through every decoder that reads a message by Tally's own schemas.
//!
//! ```text
//!  bytes ─► wire::split ─► body ─► Plan of Increment, IncrementBatch ─┐
//!                           └────► DeltaBatch::decode ────────────────┴─► encoded again: the same
//! ```

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tally_schemas::{
    BatchEncoder, Delta, DeltaBatch, DeltaBatchHeader, Increment, Message, MessageType, Plan, avsc,
    delta_batch, encode, wire,
};

static PLANS: LazyLock<[Plan; 2]> = LazyLock::new(|| {
    [avsc::INCREMENT, avsc::INCREMENT_BATCH]
        .map(|schema| Plan::new(schema).expect("our own schema"))
});

fuzz_target!(|bytes: &[u8]| {
    // Bytes without a prefix are taken for a body, or most inputs would be of no use.
    let body = match wire::split(bytes) {
        Ok((schema, body)) => {
            assert_eq!([&wire::prefix(schema), body].concat(), bytes);
            body
        }
        Err(_) => bytes,
    };
    for plan in &*PLANS {
        if let Some((message, increments)) = increments(plan, body) {
            let again = encoded(plan.message_type(), message, &increments);
            assert_eq!(self::increments(plan, &again), Some((message, increments)));
        }
    }
    if let Some((header, deltas)) = deltas(body) {
        let mut again = Vec::new();
        delta_batch::encode(&mut again, &header, deltas.iter().copied());
        assert_eq!(self::deltas(&again), Some((header, deltas)));
    }
});

fn increments<'a>(plan: &Plan, body: &'a [u8]) -> Option<(Message<'a>, Vec<Increment<'a>>)> {
    let mut increments = Vec::new();
    match plan.decode_into(body, &mut increments) {
        Ok(message) => {
            assert_eq!(message.increments, increments.len() as u64);
            Some((message, increments))
        }
        Err(error) => {
            assert!(increments.is_empty() && error.position <= body.len(), "{error}");
            None
        }
    }
}

fn encoded(
    message_type: MessageType,
    message: Message<'_>,
    increments: &[Increment<'_>],
) -> Vec<u8> {
    let mut body = Vec::new();
    match (message_type, increments) {
        (MessageType::Increment, [only]) => encode::increment(&mut body, only),
        (MessageType::Increment, _) => {
            panic!("{} increments in a message of one", increments.len())
        }
        (MessageType::IncrementBatch, _) => {
            let mut encoder = BatchEncoder::new();
            increments.iter().for_each(|increment| encoder.push(increment));
            encoder.finish(&mut body, message.id);
        }
    }
    body
}

fn deltas(body: &[u8]) -> Option<(DeltaBatchHeader<'_>, Vec<Delta<'_>>)> {
    let DeltaBatch { header, mut deltas } = DeltaBatch::decode(body).ok()?;
    assert!(deltas.announced() <= body.len());
    let read: Result<Vec<_>, _> = deltas.by_ref().collect();
    assert!(deltas.next().is_none(), "nothing comes after the end or the first error");
    let read = read.ok()?;
    // Padded numbers make a body longer than it need be, never shorter.
    assert!(read.iter().map(Delta::encoded_bytes).sum::<usize>() <= body.len());
    Some((header, read))
}
