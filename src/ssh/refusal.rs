//! Why a jump host does not make the way to a host, as it says itself.

/// Why a jump host does not make the way to a host (RFC 4254, 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JumpRefusal {
    /// It may not.
    Forbidden,
    /// It has tried.
    CannotConnect,
    /// It knows no such ways.
    UnknownKind,
    /// It has no room for another one.
    Shortage,
    /// It gave no reason, or one that nobody knows.
    Unnamed,
}

impl From<russh::ChannelOpenFailure> for JumpRefusal {
    fn from(reason: russh::ChannelOpenFailure) -> Self {
        use russh::ChannelOpenFailure as Reason;
        match reason {
            Reason::AdministrativelyProhibited => Self::Forbidden,
            Reason::ConnectFailed => Self::CannotConnect,
            Reason::UnknownChannelType => Self::UnknownKind,
            Reason::ResourceShortage => Self::Shortage,
            Reason::Other { .. } => Self::Unnamed,
        }
    }
}

impl std::fmt::Display for JumpRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Forbidden => "it forbids forwarding",
            Self::CannotConnect => {
                "it cannot connect there: nothing listens, or it knows no way or no such name"
            }
            Self::UnknownKind => "it does not know how to forward",
            Self::Shortage => "it has no room for another connection",
            Self::Unnamed => "it gives no reason",
        })
    }
}

impl JumpRefusal {
    /// What to do about it.
    pub(super) fn hint(self, to: &str) -> String {
        match self {
            Self::Forbidden => {
                "look at AllowTcpForwarding and PermitOpen in the jump host's sshd_config"
                    .to_owned()
            }
            Self::CannotConnect => format!(
                "look whether the host is up and its sshd listens at {to}, as the jump host sees it"
            ),
            Self::UnknownKind => {
                "it may be no OpenSSH server: use a ProxyCommand or another jump host".to_owned()
            }
            Self::Shortage | Self::Unnamed => {
                "look at the jump host's sshd log, and at its memory and open files".to_owned()
            }
        }
    }
}
