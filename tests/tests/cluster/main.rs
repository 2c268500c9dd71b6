//! Clusters of real processes and the apps that write through them. One program, as its tests mostly wait: for
//! elections, for nodes that start, for what has to be caught up.

mod any_node;
mod auth;
mod backup;
mod behaviour;
mod client_matrix;
mod contents;
mod crash_app;
mod crash_node;
mod creation;
mod host_matrix;
mod hosts;
mod http;
mod judges;
mod large;
mod lost_disk;
mod many;
mod membership;
mod outcomes;
mod paused;
mod reads;
mod recover;
mod restart;
mod shell;
mod storage;
mod testfixture;
mod upgrade;
mod wounds;
