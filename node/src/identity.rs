//! Whose a data directory is: `DIR/identity`, three lines of text.
//!
//! ```text
//! quire data directory, version 1
//! cluster CLUSTER_ID      in hexadecimal
//! node NODE_ID
//! ```

const VERSION: &str = "quire data directory, version 1";

/// Which node of which cluster a directory belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id.
    pub cluster: [u8; 16],
    /// The node's id.
    pub node: u64,
}

impl Identity {
    /// The file's text.
    pub fn encode(&self) -> String {
        format!("{VERSION}\ncluster {}\nnode {}\n", self.cluster_id(), self.node)
    }

    /// The cluster's id in hexadecimal.
    pub fn cluster_id(&self) -> String {
        self.cluster.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What the file says, or why it can't be used and what to do.
    pub fn decode(text: &str) -> Result<Identity, String> {
        let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
        if first != VERSION {
            return Err(format!(
                "this build of Quire reads a {VERSION:?}, but it says {first:?}: run the version of Quire that made the \
                 directory, or remove this node from the cluster and let the machine join again under a new id"
            ));
        }
        // As it was written, and in no other way.
        parse(rest).filter(|identity| identity.encode() == text).ok_or_else(|| {
            "its lines \"cluster ID\" and \"node ID\" are damaged: write them again, if you know both ids, or remove this node \
             from the cluster and let the machine join again under a new id"
                .into()
        })
    }
}

fn parse(lines: &str) -> Option<Identity> {
    let (cluster, node) = lines.split_once('\n')?;
    let hex = cluster.strip_prefix("cluster ").filter(|hex| hex.is_ascii() && hex.len() == 32)?;
    let mut cluster = [0; 16];
    for (i, byte) in cluster.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(Identity { cluster, node: node.strip_prefix("node ")?.trim_end().parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_identity_says_what_to_do() {
        let mut cluster = [0; 16];
        (cluster[1], cluster[15]) = (1, 255);
        let identity = Identity { cluster, node: 7 };
        let text = identity.encode();
        assert_eq!(text, format!("{VERSION}\ncluster 000100000000000000000000000000ff\nnode 7\n"));
        assert_eq!(Identity::decode(&text), Ok(identity));
        for bad in ["", "x\ny\nz", &text[..20], &text.replace("version 1", "version 2")] {
            let why = Identity::decode(bad).unwrap_err();
            assert!(why.contains("run the version of Quire that made the directory"), "{bad:?}: {why}");
        }
        for (from, to) in [
            ("ff", "fx"),
            ("ff", "FF"),
            ("00ff", "+1ff"),
            ("7", "x"),
            ("7", "+7"),
            ("7\n", "7"),
            ("7\n", "7\nx"),
        ] {
            let bad = text.replace(from, to);
            assert!(Identity::decode(&bad).unwrap_err().contains("damaged"), "{bad:?}");
        }
    }
}
