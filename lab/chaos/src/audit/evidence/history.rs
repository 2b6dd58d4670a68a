//! What happened around the first wrong offset: the batch that it is in and its neighbours, the
//! messages around it, and what was written down of each when it was sent.

use std::fmt::Write;

use super::Evidence;

const BATCHES_AROUND: usize = 2;
const MESSAGES_AROUND: usize = 4;

impl Evidence<'_> {
    /// `None` where nothing that is wrong has an offset.
    pub(super) fn history(&self) -> Option<String> {
        let findings = &self.audit.findings.listed;
        let (kafka, first) = findings.iter().filter_map(|finding| finding.at).min()?;
        let number =
            usize::try_from(kafka).ok().filter(|number| *number < self.partitions.len())?;
        let partition = &self.partitions[number];
        let index = partition.batches.iter().position(|batch| batch.to > first);
        // The batch is known to be wrong; better to know the message.
        let batch = index.map_or(first..first + 1, |index| first..partition.batches[index].to);
        let named = findings.iter().filter(|finding| finding.kind.names_message());
        let named = named
            .filter_map(|finding| finding.at)
            .filter(|at| at.0 == kafka && batch.contains(&at.1));
        let offset = named.min().map_or(first, |(_, offset)| offset);
        let mut text = format!("  around {kafka}:{offset}, the first wrong offset");
        let mut line = |line: String| writeln!(text).and_then(|()| write!(text, "    {line}"));
        match index {
            None => line(format!("in no batch; increments ends at {}", partition.end())),
            Some(index) => partition.batches[index.saturating_sub(BATCHES_AROUND)..]
                .iter()
                .take(2 * BATCHES_AROUND + 1)
                .try_for_each(|batch| {
                    let sign = if (batch.from..batch.to).contains(&offset) { '>' } else { ' ' };
                    let stored =
                        if self.is_stored(number, batch.offset) { "stored" } else { "NOT stored" };
                    let (at, from, to) = (batch.offset, batch.from, batch.to);
                    line(format!(
                        "{sign} batch at {at} of deltas, [{from}, {to}), {stored}: {:?}",
                        batch.numbers
                    ))
                }),
        }
        .expect("a string takes text");
        let next = partition.seen.partition_point(|seen| seen.offset < offset);
        let around = partition.seen[next.saturating_sub(MESSAGES_AROUND)..]
            .iter()
            .take(2 * MESSAGES_AROUND + 1);
        for seen in around {
            let sign = if seen.offset == offset { '>' } else { ' ' };
            let sent = match seen.mark.map(|mark| (mark, &self.record.entries[mark as usize])) {
                Some((mark, entry)) => format!("mark {mark}, {entry}"),
                None => String::from("nobody sent it"),
            };
            line(format!("{sign} message {}, {:?}: {sent}", seen.offset, seen.fate))
                .expect("a string takes text");
        }
        Some(text)
    }
}
