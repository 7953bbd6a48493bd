"""What tests share: searches and candidates made by hand, a simulated search, servers, clusters, commands."""
