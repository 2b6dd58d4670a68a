//! Who is in a consumer group.

use std::io::Cursor;
use std::time::Duration;

use kafka_protocol::messages::ConsumerProtocolAssignment;
use kafka_protocol::protocol::{Decodable, Message};
use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::error::KafkaError;

/// The asker may hold up the end of a service for so long.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// A member, as the group's coordinator tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// The `client.id` that it came with.
    pub client_id: String,
    /// Where it came from.
    pub host: String,
    /// The partitions of the topic in question that it has, empty while the group is about to give
    /// partitions out anew; `None` if that cannot be read.
    pub partitions: Option<Vec<i32>>,
}

/// The members of a group, and what they have of a topic. Asks every broker, and blocks meanwhile.
pub fn group_members<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    topic: &str,
) -> Result<Vec<GroupMember>, KafkaError> {
    let groups = client.fetch_group_list(Some(group), CALL_TIMEOUT)?;
    let members = groups.groups().iter().flat_map(|found| found.members());
    let told = members.map(|member| GroupMember {
        client_id: member.client_id().to_owned(),
        host: member.client_host().to_owned(),
        partitions: partitions(member.assignment().unwrap_or_default(), topic),
    });
    Ok(told.collect())
}

/// What a member's assignment, in the consumers' protocol, says of a topic; `None` if it is not in
/// that protocol.
fn partitions(assignment: &[u8], topic: &str) -> Option<Vec<i32>> {
    if assignment.is_empty() {
        return Some(Vec::new());
    }
    let (version, body) = assignment.split_first_chunk()?;
    // Each version begins with what the ones before it have.
    let version = i16::from_be_bytes(*version).min(ConsumerProtocolAssignment::VERSIONS.max);
    let decoded = ConsumerProtocolAssignment::decode(&mut Cursor::new(body), version).ok()?;
    let of_topic = decoded.assigned_partitions.into_iter().filter(|of| **of.topic == *topic);
    Some(of_topic.flat_map(|of| of.partitions).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_of_any_version_tells_the_topics_partitions() {
        let body = [
            [0, 0, 0, 2].as_slice(),
            [0, 5].as_slice(),
            b"other",
            &[0, 0, 0, 1, 0, 0, 0, 9],
            &[0, 5],
            b"topic",
            &[0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3],
            &[255, 255, 255, 255],
        ]
        .concat();
        for version in [0, 1, 3, 7] {
            let assignment = [[0, version].as_slice(), &body].concat();
            assert_eq!(partitions(&assignment, "topic"), Some(vec![1, 3]));
            assert_eq!(partitions(&assignment, "third"), Some(vec![]));
        }
        for cut in 0..body.len() {
            let assignment = [[0, 1].as_slice(), &body[..cut]].concat();
            assert_eq!(partitions(&assignment, "topic"), None);
        }
        assert_eq!(partitions(&[0], "topic"), None);
        assert_eq!(partitions(&[], "topic"), Some(vec![]));
    }
}
