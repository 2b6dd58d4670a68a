//! A binary `tally.IncrementBatch` by Tally's own schema, without the prefix that a message of the
//! log has.

use tally_counts::{check_name, check_namespace};
use tally_schemas::{Increment, Plan, avsc};

use super::{Error, Fault, Findings, Item, ItemPlace, Parsed, Rules, Shape, fields};

/// How to read the bodies; made once.
pub(crate) struct Avro {
    plan: Plan,
}

impl Avro {
    pub(crate) fn new() -> Avro {
        Avro { plan: Plan::new(avsc::INCREMENT_BATCH).expect("Tally's own schema can be read") }
    }

    pub(super) fn parse<'a>(&self, body: &'a [u8], rules: Rules) -> Result<Parsed<'a>, Error> {
        let mut findings = Findings::new(rules);
        let mut item = 0;
        let decoded = self.plan.decode(body, |increment| {
            check(&mut findings, ItemPlace { item, line: None }, increment);
            item += 1;
        });
        let id = match decoded {
            Ok(message) => message.id,
            Err(error) => {
                let reason = format!("not a binary tally.IncrementBatch: {error}");
                return Err(Error::Malformed(Fault {
                    field: Some(error.field),
                    reason,
                    ..Fault::default()
                }));
            }
        };
        if let Some(reason) = id.and_then(|id| check_name(id).err()) {
            let reason = reason.to_string();
            findings.faults.push(|| Fault { field: Some("id".into()), reason, ..Fault::default() });
        }
        Ok(Parsed { shape: Shape::Batch, id, items: findings.finish()? })
    }
}

fn check<'a>(findings: &mut Findings<'a>, place: ItemPlace, increment: Increment<'a>) {
    let checks = [
        ("namespace", check_namespace(increment.namespace).map_err(|e| e.to_string())),
        ("key", check_name(increment.key).map_err(|e| e.to_string())),
        ("at", fields::at(increment.at_ms, findings.rules)),
        ("id", increment.id.map_or(Ok(()), check_name).map_err(|e| e.to_string())),
    ];
    let mut is_sound = true;
    for (field, checked) in checks {
        if let Err(reason) = checked {
            findings.fault(place, Some(field), || reason);
            is_sound = false;
        }
    }
    if is_sound {
        findings.items.push(Item {
            namespace: increment.namespace.into(),
            key: increment.key.into(),
            delta: increment.delta,
            at_ms: increment.at_ms,
            id: increment.id.map(Into::into),
        });
    }
}
